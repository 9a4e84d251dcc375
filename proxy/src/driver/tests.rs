//! The driver against a node and clients of the test's own, where what is bounded is bounded for all of them together.

use tokio::{io::AsyncReadExt, net::TcpListener, sync::mpsc::UnboundedReceiver as Inputs, time::sleep};
use understudy_core::{
    auth::NoCredentials, event::Cause, files::Files, fleet::Assignment, ids::NodeId, link::LinkConfig,
};

use super::*;
use crate::{
    config::NodeConfig,
    ha::{Gate, Moment},
    metrics::Metrics,
    shared::Setup,
};

/// A proxy without a Fleet, its one node, and the door that clients come through.
struct Rig {
    shared: Arc<Shared>,
    node: TcpListener,
    door: TcpListener,
    _inputs: Inputs<FleetInput>,
}

impl Rig {
    async fn new() -> Self {
        Self::behind(Arc::new(Gate::always_open())).await
    }

    /// What is forwarded passes this gate.
    async fn behind(gate: Arc<Gate>) -> Self {
        let [node, door] = [TcpListener::bind("127.0.0.1:0").await, TcpListener::bind("127.0.0.1:0").await];
        let (node, door) = (node.unwrap(), door.unwrap());
        let (fleet, inputs) = unbounded_channel();
        let nodes =
            vec![NodeConfig { name: "a".into(), address: node.local_addr().unwrap().to_string(), uid: None }];
        let minute = Duration::from_secs(60);
        let shared = Shared::new(Setup {
            nodes,
            link_config: LinkConfig::default(),
            credentials: Arc::new(NoCredentials),
            metrics: Arc::new(Metrics::new().unwrap()),
            gate,
            fleet,
            store: crate::persist::channel().0,
            files: Files::default(),
            user_timeout: minute,
            half_frame: minute,
        });
        Self { shared: Arc::new(shared), node, door, _inputs: inputs }
    }

    /// A client that is served from now on.
    async fn client(&self) -> TcpStream {
        let client = TcpStream::connect(self.door.local_addr().unwrap()).await.unwrap();
        let (stream, peer) = self.door.accept().await.unwrap();
        tokio::spawn(serve(Arc::clone(&self.shared), stream, peer));
        client
    }

    fn name_the_node(&self) {
        let assignment = Assignment { generation: 1, epoch: 1, node: NodeId(0) };
        self.shared.assign(assignment, Cause::Crash, false);
    }

    /// Until so many bytes of clients have been read.
    async fn await_read(&self, bytes: u64) {
        let end = Instant::now() + Duration::from_secs(30);
        while self.shared.metrics.bytes_from_client.get() < bytes {
            assert!(Instant::now() < end, "the clients are not read");
            sleep(Duration::from_millis(1)).await;
        }
    }
}

/// A frame of 100 bytes that nobody understands.
const FRAME: [u8; 104] = {
    let mut frame = [7; 104];
    (frame[0], frame[1], frame[2], frame[3]) = (0, 0, 0, 100);
    frame
};

#[tokio::test]
async fn of_a_herd_32_wait_for_their_node_at_a_time() {
    const HERD: usize = 100;
    let rig = Rig::new().await;
    let mut clients = Vec::new();
    for _ in 0..HERD {
        let mut client = rig.client().await;
        client.write_all(&FRAME).await.unwrap();
        clients.push(client);
    }
    rig.await_read((HERD * FRAME.len()) as u64).await;
    rig.name_the_node();
    // The node takes whoever comes, and answers when nobody has come for a while.
    let (mut waiting, mut served) = (Vec::new(), Vec::new());
    while served.len() < HERD {
        match timeout(Duration::from_millis(50), rig.node.accept()).await {
            Ok(accepted) => waiting.push(accepted.unwrap().0),
            Err(_) => {
                assert!(waiting.len() <= 32, "{} wait for their first answer", waiting.len());
                for mut leg in waiting.drain(..) {
                    leg.read_exact(&mut [0; FRAME.len()]).await.unwrap();
                    leg.write_all(&FRAME).await.unwrap();
                    served.push(leg);
                }
            }
        }
    }
}

#[tokio::test]
async fn beyond_1_gib_in_all_who_keeps_something_is_read_no_further() {
    let rig = Rig::new().await;
    let others = (1 << 30) - 50;
    rig.shared.keep(0, others);
    let mut first = rig.client().await;
    first.write_all(&FRAME).await.unwrap();
    rig.await_read(104).await;
    // Its first frame is kept, for it has no node; that was too much.
    first.write_all(&FRAME).await.unwrap();
    let mut second = rig.client().await;
    second.write_all(&FRAME).await.unwrap();
    rig.await_read(2 * 104).await;
    sleep(Duration::from_millis(50)).await;
    assert_eq!(rig.shared.metrics.bytes_from_client.get(), 2 * 104, "one frame of each");
    // A node takes what was kept, of everyone.
    rig.shared.keep(others, 0);
    rig.name_the_node();
    rig.await_read(3 * 104).await;
    drop((first, second));
}

/// A shut gate holds back what comes from a client, and what was read of it but not written to its node.
#[tokio::test]
async fn nothing_is_forwarded_while_the_gate_is_shut() {
    let gate = Arc::new(Gate::shut());
    let rig = Rig::behind(Arc::clone(&gate)).await;
    rig.name_the_node();
    let mut client = rig.client().await;
    client.write_all(&FRAME).await.unwrap();
    // More than enough for a client that is read.
    sleep(Duration::from_millis(200)).await;
    assert_eq!(rig.shared.metrics.bytes_from_client.get(), 0);

    gate.open_until(Moment::now().after(Duration::from_secs(60)));
    let (mut node, _) = rig.node.accept().await.unwrap();
    let mut frame = [0; FRAME.len()];
    node.read_exact(&mut frame).await.unwrap();
    assert_eq!(frame, FRAME);

    gate.open_until(Moment::now());
    client.write_all(&FRAME).await.unwrap();
    let more = timeout(Duration::from_millis(200), node.read_exact(&mut frame));
    assert!(more.await.is_err(), "it was forwarded all the same");
    gate.open_until(Moment::now().after(Duration::from_secs(60)));
    node.read_exact(&mut frame).await.unwrap();
}
