//! What the cryptography alone costs, of the same bytes: a message in Bridge is verified under one key and signed under
//! another, or opened under one and sealed under another.

use rustix::time::{ClockId, clock_gettime};
use smb_parse::{
    FileId, encode,
    frame::PREFIX,
    header::{Command, Header},
};
use understudy_core::crypto::{
    sealing::{Cipher, HEADROOM, SealingKey},
    signing::{SigningAlg, SigningKey},
};

use super::bulk::Protection;

/// As much as smbclient writes at a time.
const DATA: usize = 1 << 20;
/// How many such messages are measured: half a GiB.
const COUNT: u32 = 512;

/// What one algorithm costs.
#[derive(Debug, Clone)]
pub(crate) struct Primitive {
    pub(crate) name: String,
    /// CPU seconds for each GiB of data, both operations together.
    pub(crate) cpu_per_gib: f64,
    /// The copies are made with this one.
    pub(crate) of_copies: Option<Protection>,
}

/// Measures all algorithms.
pub(crate) fn measure() -> Vec<Primitive> {
    let signing = [SigningAlg::HmacSha256, SigningAlg::AesCmac, SigningAlg::AesGmac].map(signing);
    signing.into_iter().chain(Cipher::ALL.map(sealing)).collect()
}

fn message() -> Vec<u8> {
    let header = Header::request(Command::WRITE, 7);
    encode::write(&header, FileId::ALL_ONES, 0, 0, &vec![0x5a; DATA])
}

fn signing(alg: SigningAlg) -> Primitive {
    let (theirs, ours) = (SigningKey::new(alg, &[1; 16]), SigningKey::new(alg, &[2; 16]));
    let mut signed = message();
    theirs.sign(&mut signed);
    let mut to_sign = signed.clone();
    let cpu_per_gib = cpu_per_gib(|| {
        assert!(theirs.verify_mut(&mut signed), "{alg:?} does not verify what it has signed");
        ours.sign(&mut to_sign);
    });
    let of_copies = (alg == SigningAlg::AesGmac).then_some(Protection::Signed);
    Primitive { name: format!("verify and sign, {alg:?}"), cpu_per_gib, of_copies }
}

fn sealing(cipher: Cipher) -> Primitive {
    let key = |byte| SealingKey::new(cipher, &vec![byte; cipher.key_len()]);
    let (theirs, ours) = (key(1), key(2));
    let mut frame = [vec![0; HEADROOM], message()].concat();
    let mut works = theirs.seal(&mut frame, 1, [3; 16]);
    let mut number = 0_u128;
    let cpu_per_gib = cpu_per_gib(|| {
        let opened = frame.get(PREFIX..).and_then(|body| theirs.open(body));
        number += 1;
        works &= opened.is_some_and(|mut opened| ours.seal(&mut opened, 2, number.to_le_bytes()));
    });
    assert!(works, "{cipher:?} does not open what it has sealed");
    let of_copies = (cipher == Cipher::Aes128Gcm).then_some(Protection::Sealed);
    Primitive { name: format!("open and seal, {cipher:?}"), cpu_per_gib, of_copies }
}

/// Does it so often, after once to warm up.
fn cpu_per_gib(mut once: impl FnMut()) -> f64 {
    once();
    let before = thread_seconds();
    (0..COUNT).for_each(|_| once());
    let gib = f64::from(COUNT) * DATA as f64 / f64::from(1 << 30);
    (thread_seconds() - before) / gib
}

fn thread_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
