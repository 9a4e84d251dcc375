//! `understudy store dump`, as the operator runs it: with the store at rest, and while an understudy has it open.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use understudy_state::{Batch, Change, Embedded, Key, Store};

const UNDERSTUDY: &str = env!("CARGO_BIN_EXE_understudy");

fn configuration(dir: &Path, listen: &str, admin: Option<&str>) -> PathBuf {
    let mut text = format!(
        "listen = \"{listen}\"\n[[nodes]]\nname = \"a\"\naddress = \"127.0.0.1:9\"\n[store]\nurl = \"file:{}\"\n",
        dir.join("store").display()
    );
    if let Some(admin) = admin {
        text += &format!("[admin]\nlisten = \"{admin}\"\n");
    }
    let file = dir.join(if admin.is_some() { "with-admin.toml" } else { "without.toml" });
    fs::write(&file, text).unwrap();
    file
}

fn dump(configuration: &Path) -> Output {
    Command::new(UNDERSTUDY).args(["store", "dump", "--config"]).arg(configuration).output().unwrap()
}

fn lines(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(ToOwned::to_owned).collect()
}

fn refusal(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Killed when it goes out of sight.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An understudy that has said that it serves, with its configuration.
fn run(dir: &Path) -> (Running, PathBuf) {
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < Duration::from_secs(30), "understudy does not start");
        // Someone else may have taken the ports before understudy has them.
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let file = configuration(dir, &free(), Some(&free()));
        let mut child = Command::new(UNDERSTUDY)
            .args(["run", "--config"])
            .arg(&file)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let running = Running(child);
        let mut log = log.lines().map_while(Result::ok);
        if log.any(|line| line.contains("workers=")) {
            // What it says later must find a reader.
            std::thread::spawn(move || log.for_each(drop));
            return (running, file);
        }
    }
}

#[tokio::test]
async fn every_record_is_printed_whoever_has_the_store_open() {
    let dir = tempfile::tempdir().unwrap();
    let at_rest = configuration(dir.path(), "127.0.0.1:0", None);
    let said = refusal(&dump(&at_rest));
    assert!(said.contains("there is none"), "{said}");
    assert!(!dir.path().join("store").exists(), "to look has made it");

    let records = [("a/1", r#"{"v":99,"from":"a newer build"}"#), ("a/2", "damaged"), ("b", r#"{"v":1}"#)];
    {
        let store = Embedded::open(&dir.path().join("store")).unwrap();
        let changes =
            records.iter().map(|(key, value)| Change::Put(Key::from(*key), value.as_bytes().to_vec()));
        store.commit(Batch::new(changes.collect())).await.unwrap();
    }
    let expected = [
        r#"{"key":"a/1","value":{"v":99,"from":"a newer build"}}"#,
        r#"{"key":"a/2","text":"damaged"}"#,
        r#"{"key":"b","value":{"v":1}}"#,
    ];
    assert_eq!(lines(&dump(&at_rest)), expected);

    let (running, with_admin) = run(dir.path());
    let said = refusal(&dump(&at_rest));
    assert!(said.contains("open in another process") && said.contains("[admin] listen"), "{said}");
    assert_eq!(lines(&dump(&with_admin)), expected);
    drop(running);
    assert_eq!(lines(&dump(&with_admin)), expected);
}
