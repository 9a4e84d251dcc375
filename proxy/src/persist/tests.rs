//! What goes into a commit together.

use super::*;

fn open() -> OpenRecord {
    OpenRecord::from_bytes(include_bytes!("../../../state/tests/golden/open-v1.json")).unwrap()
}

fn put(record: OpenRecord, link: u64) -> Item {
    Item::Store(Mutation::PutOpen(Box::new(record)), Some((LinkId(link), StoreToken(1))))
}

fn removal(link: u64) -> Item {
    let key = OpenKey { client: [7; 16], file_id: open().file_id };
    Item::Store(Mutation::RemoveOpen(key), Some((LinkId(link), StoreToken(2))))
}

async fn gathered(items: &mut UnboundedReceiver<Item>) -> Pending {
    let mut pending = Pending::default();
    assert!(gather(items, &mut pending, Pace::new(Instant::now()), Limits::NONE).await);
    pending
}

#[tokio::test]
async fn what_nobody_waits_for_goes_with_what_somebody_does() {
    let (to, mut items) = channel();
    to.send(removal(1)).unwrap();
    let (pending, ()) = tokio::join!(gathered(&mut items), async { to.send(put(open(), 2)).unwrap() });
    assert_eq!((pending.changes.len(), pending.waited_for), (2, 1));
    assert_eq!(pending.waiting, HashMap::from([(LinkId(2), StoreToken(1))]));
}

#[tokio::test]
async fn what_nobody_waits_for_is_committed_alone_if_nothing_comes() {
    let (to, mut items) = channel();
    let lazy = OpenRecord { durable: Default::default(), resilient: None, ..open() };
    to.send(put(lazy, 1)).unwrap();
    to.send(removal(1)).unwrap();
    let pending = gathered(&mut items).await;
    assert_eq!((pending.changes.len(), pending.waited_for), (2, 0));
}

#[tokio::test]
async fn what_is_flushed_is_committed_at_once_and_what_is_left_at_the_end_too() {
    let (to, mut items) = channel();
    let (done, _is_done) = oneshot::channel();
    to.send(removal(1)).unwrap();
    to.send(Item::Flush(done)).unwrap();
    let pending = gathered(&mut items).await;
    assert_eq!(pending.due(Pace::new(Instant::now()), Limits::NONE), None);
    assert_eq!(pending.changes.len(), 1);
    to.send(removal(1)).unwrap();
    drop(to);
    assert_eq!(gathered(&mut items).await.changes.len(), 1);
    assert!(!gather(&mut items, &mut Pending::default(), Pace::new(Instant::now()), Limits::NONE).await);
}

#[tokio::test]
async fn those_who_were_served_are_gathered_until_it_has_taken_long_enough() {
    let (to, mut items) = channel();
    to.send(put(open(), 1)).unwrap();
    let now = Instant::now();
    let (mut pending, pace) = (Pending::default(), Pace::committed(now, now + 8 * GLANCE, 2));
    assert!(gather(&mut items, &mut pending, pace, Limits::NONE).await);
    assert!(Instant::now() >= now + 12 * GLANCE, "others were not waited for");
    assert_eq!(pending.changes.len(), 1);
    // As many as before need not wait.
    let hour = Duration::from_secs(3600);
    let pace = Pace::committed(now, now + hour, 2);
    let mut pending = Pending::default();
    to.send(put(open(), 1)).unwrap();
    let mut other = open();
    other.file_id.persistent += 1;
    to.send(put(other, 2)).unwrap();
    assert!(gather(&mut items, &mut pending, pace, Limits::NONE).await);
    assert!(Instant::now() < now + hour);
    assert_eq!((pending.changes.len(), pending.waited_for), (2, 2));
}

#[test]
fn a_session_is_stored_at_once_so_that_its_client_is_found_when_this_proxy_is_gone() {
    let session = SessionRecord::from_bytes(include_bytes!("../../../state/tests/golden/session-v1.json"));
    let mut pending = Pending::default();
    pending.add(Item::Store(Mutation::PutSession(Box::new(session.unwrap())), None));
    assert_eq!(pending.waited_for, 1);
}
