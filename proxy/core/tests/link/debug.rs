//! What Debug prints, and with it a panic message, a failed assertion or a careless log line: no secret.

use smb_parse::header::Status;
use understudy_core::crypto::{
    Dialect, kdf,
    sealing::{Cipher, SealingKey},
    signing::{SigningAlg, SigningKey},
};

use crate::{TEXT, rig::Rig};

/// alice's hash is this byte, so often.
const HASH: [u8; 16] = [3; 16];

#[test]
fn no_secret_is_printed_by_a_login_or_a_link() {
    for dialect in [Dialect::SMB210, Dialect::SMB302, Dialect::SMB311] {
        let mut rig = Rig::new();
        rig.dialect = dialect;
        rig.put("file", 77, TEXT);
        rig.negotiate();
        let mut printed = String::new();
        let mut login = rig.exchange("alice");
        loop {
            let id = rig.send_login(&mut login);
            printed += &format!("{:?} {:?}", login.login, rig.link);
            let status = rig.take_login(&mut login, id);
            printed += &format!("{:?} {:#?} {:?}", login.login, login.login, rig.link);
            if status != Status::MORE_PROCESSING_REQUIRED {
                assert_eq!(status, Status::SUCCESS);
                break;
            }
        }
        let key = login.login.session_key().unwrap().clone();
        let hash = login.preauth.value();
        let signing = kdf::signing_key(dialect, &key, &hash);
        printed += &format!("{key:?} {:?}", SigningKey::new(SigningAlg::AesCmac, &signing));
        let mut secrets = vec![HASH.to_vec(), key.bytes().to_vec(), signing.to_vec()];
        for cipher in Cipher::ALL {
            let sealing = kdf::sealing_key(dialect, cipher, kdf::Direction::ToServer, &key, &hash);
            printed += &format!("{:?}", SealingKey::new(cipher, &sealing));
            secrets.push(sealing.to_vec());
        }
        rig.connect(0);
        rig.open(0, "file");
        rig.fail_over();
        printed += &format!("{:?} {:?} {:?}", rig.link, rig.takeovers, rig.files);
        assert!(printed.contains("***"), "nothing secret was there to be printed");
        for secret in secrets {
            for form in forms(&secret) {
                assert!(!printed.contains(&form), "{dialect:x?}: {form}");
            }
        }
    }
}

/// How Rust prints bytes: `{:?}`, `{:x?}`, `{:02x?}`, and `{:#?}` as deep as structures are here.
fn forms(bytes: &[u8]) -> Vec<String> {
    let list = |text: String| text.trim_matches(['[', ']']).to_owned();
    let pretty = bytes.iter().map(|byte| format!("{byte},")).collect::<Vec<_>>();
    let mut forms =
        vec![list(format!("{bytes:?}")), list(format!("{bytes:x?}")), list(format!("{bytes:02x?}"))];
    forms.extend([4, 8, 12, 16, 20].map(|depth| pretty.join(&format!("\n{}", " ".repeat(depth)))));
    forms
}

#[test]
fn the_forms_are_those_that_rust_prints() {
    #[derive(Debug)]
    #[allow(dead_code, reason = "it is there to be printed")]
    struct Careless {
        key: Vec<u8>,
    }
    let careless = Careless { key: HASH.to_vec() };
    for text in [
        format!("{careless:?}"),
        format!("{careless:#?}"),
        format!("{careless:x?}"),
        format!("{careless:02x?}"),
        format!("{:#?}", Some(careless)),
    ] {
        assert!(forms(&HASH).iter().any(|form| text.contains(form)), "{text}");
    }
}
