//! Encryption of messages (MS-SMB2 3.1.4.3): AES-128/256 in CCM and GCM, the tag in the TRANSFORM_HEADER.
//!
//! A sealed body is the TRANSFORM_HEADER and the encrypted message, or compound. Authenticated with it is the header
//! from Nonce on. Both modes encrypt in counter mode, so any part of a message can be read without the rest
//! ([`SealingKey::peek`]), unauthenticated.

use std::fmt;

use aes::{
    Aes128, Aes256, Block,
    cipher::{BlockCipherEncrypt, KeyInit},
};
use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce as GcmNonce, UnboundKey};
use bytes::BytesMut;
use ccm::{
    Ccm,
    aead::AeadInOut,
    consts::{U11, U16},
};
use smb_parse::{
    frame::{MAX_LEN, PREFIX, write_prefix},
    transform::{self, Header},
};

use crate::random::Random;

/// Where a message begins in a frame that has, or is to get, a TRANSFORM_HEADER.
pub const HEADROOM: usize = PREFIX + Header::LEN;
/// From where on the TRANSFORM_HEADER is authenticated (MS-SMB2 3.1.4.3).
const AUTHENTICATED: std::ops::Range<usize> = 20..Header::LEN;
/// Where the tag stands in it.
const TAG: std::ops::Range<usize> = 4..20;

/// A cipher (MS-SMB2 2.2.3.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cipher {
    /// AES-128-CCM: the only one in 3.0 and 3.0.2.
    Aes128Ccm,
    /// AES-128-GCM.
    Aes128Gcm,
    /// AES-256-CCM.
    Aes256Ccm,
    /// AES-256-GCM.
    Aes256Gcm,
}

impl Cipher {
    /// Every cipher.
    pub const ALL: [Self; 4] = [Self::Aes128Ccm, Self::Aes128Gcm, Self::Aes256Ccm, Self::Aes256Gcm];

    /// The cipher of that id in SMB2_ENCRYPTION_CAPABILITIES.
    pub fn from_wire(id: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|cipher| cipher.wire() == id)
    }

    /// Its id in SMB2_ENCRYPTION_CAPABILITIES.
    pub fn wire(self) -> u16 {
        match self {
            Self::Aes128Ccm => 1,
            Self::Aes128Gcm => 2,
            Self::Aes256Ccm => 3,
            Self::Aes256Gcm => 4,
        }
    }

    /// Bytes of a key.
    pub fn key_len(self) -> usize {
        match self {
            Self::Aes128Ccm | Self::Aes128Gcm => 16,
            Self::Aes256Ccm | Self::Aes256Gcm => 32,
        }
    }

    /// Bytes of a nonce; the rest of the header's field is zero.
    fn nonce_len(self) -> usize {
        match self {
            Self::Aes128Ccm | Self::Aes256Ccm => 11,
            Self::Aes128Gcm | Self::Aes256Gcm => 12,
        }
    }
}

/// A nonce as it stands in the TRANSFORM_HEADER.
pub type Nonce = [u8; 16];

/// Nonces of the proxy's own: they count on from a random start over their whole width, so that they do not meet those
/// of a node that has used the same key (which in Samba count on from a random high part).
#[derive(Debug, Clone, Default)]
pub struct Nonces(Option<u128>);

impl Nonces {
    /// One that was not used before.
    pub fn next(&mut self, random: &mut dyn Random) -> Nonce {
        let value = match self.0 {
            Some(last) => last.wrapping_add(1),
            None => {
                let mut start = [0; 16];
                random.fill(&mut start);
                u128::from_le_bytes(start)
            }
        };
        self.0 = Some(value);
        value.to_le_bytes()
    }
}

/// The key of one direction.
pub struct SealingKey {
    cipher: Cipher,
    mode: Mode,
    /// For [`SealingKey::peek`].
    block: BlockCipher,
}

enum Mode {
    Gcm(LessSafeKey),
    Ccm128(Box<Ccm<Aes128, U16, U11>>),
    Ccm256(Box<Ccm<Aes256, U16, U11>>),
    /// The library refused the key: nothing opens, nothing is sealed.
    Unusable,
}

enum BlockCipher {
    Aes128(Box<Aes128>),
    Aes256(Box<Aes256>),
    Unusable,
}

impl SealingKey {
    /// The key schedule for `cipher`. `key` is as long as [`Cipher::key_len`]; one of another length opens nothing.
    pub fn new(cipher: Cipher, key: &[u8]) -> Self {
        let gcm = |algorithm| {
            UnboundKey::new(algorithm, key).map_or(Mode::Unusable, |key| Mode::Gcm(LessSafeKey::new(key)))
        };
        let mode = match cipher {
            Cipher::Aes128Gcm => gcm(&AES_128_GCM),
            Cipher::Aes256Gcm => gcm(&AES_256_GCM),
            Cipher::Aes128Ccm => {
                Ccm::new_from_slice(key).map_or(Mode::Unusable, |key| Mode::Ccm128(Box::new(key)))
            }
            Cipher::Aes256Ccm => {
                Ccm::new_from_slice(key).map_or(Mode::Unusable, |key| Mode::Ccm256(Box::new(key)))
            }
        };
        let block = if cipher.key_len() == 16 {
            Aes128::new_from_slice(key).map_or(BlockCipher::Unusable, |k| BlockCipher::Aes128(Box::new(k)))
        } else {
            Aes256::new_from_slice(key).map_or(BlockCipher::Unusable, |k| BlockCipher::Aes256(Box::new(k)))
        };
        Self { cipher, mode, block }
    }

    /// Opens a sealed body. What comes back has [`HEADROOM`] bytes before the message, so that it can be sealed again
    /// where it lies. `None`: malformed, or the tag is wrong; then nothing of it may be believed.
    pub fn open(&self, body: &[u8]) -> Option<BytesMut> {
        let header = Header::parse(body).ok()?;
        let (head, sealed) = body.split_at_checked(Header::LEN)?;
        if usize::try_from(header.original_size).ok()? != sealed.len() {
            return None;
        }
        let aad = head.get(AUTHENTICATED)?;
        let nonce = header.nonce.get(..self.cipher.nonce_len())?;
        // Memory that was used before, if there is some: fresh zeroed pages cost more than to write the zeros.
        let len = HEADROOM + sealed.len();
        let mut out = BytesMut::with_capacity(len);
        out.resize(len, 0);
        let plain = out.get_mut(HEADROOM..)?;
        match &self.mode {
            Mode::Gcm(key) => {
                let nonce = GcmNonce::try_assume_unique_for_key(nonce).ok()?;
                key.open_separate_gather(nonce, Aad::from(aad), sealed, &header.signature, plain).ok()?;
            }
            Mode::Ccm128(key) => {
                plain.copy_from_slice(sealed);
                let (nonce, tag) = (nonce.try_into().ok()?, &header.signature.into());
                key.decrypt_inout_detached(nonce, aad, plain.into(), tag).ok()?;
            }
            Mode::Ccm256(key) => {
                plain.copy_from_slice(sealed);
                let (nonce, tag) = (nonce.try_into().ok()?, &header.signature.into());
                key.decrypt_inout_detached(nonce, aad, plain.into(), tag).ok()?;
            }
            Mode::Unusable => return None,
        }
        Some(out)
    }

    /// Seals a frame where it lies: [`HEADROOM`] bytes, then the message. Writes the length prefix and the
    /// TRANSFORM_HEADER before it. `nonce` must not have been used with this key. False: nothing was sealed, the frame
    /// must not be sent.
    #[must_use]
    pub fn seal(&self, frame: &mut [u8], session_id: u64, nonce: Nonce) -> bool {
        self.try_seal(frame, session_id, nonce).is_some()
    }

    fn try_seal(&self, frame: &mut [u8], session_id: u64, mut nonce: Nonce) -> Option<()> {
        let body_len = frame.len().checked_sub(PREFIX).filter(|len| *len <= MAX_LEN)?;
        nonce.get_mut(self.cipher.nonce_len()..)?.fill(0);
        let (prefix, body) = frame.split_at_mut_checked(PREFIX)?;
        write_prefix(prefix, body_len);
        let (head, plain) = body.split_at_mut_checked(Header::LEN)?;
        let header = Header {
            signature: [0; 16],
            nonce,
            original_size: u32::try_from(plain.len()).ok()?,
            flags: transform::ENCRYPTED,
            session_id,
        };
        head.copy_from_slice(&header.to_bytes());
        let aad = head.get(AUTHENTICATED)?;
        let nonce = nonce.get(..self.cipher.nonce_len())?;
        let tag: [u8; 16] = match &self.mode {
            Mode::Gcm(key) => {
                let nonce = GcmNonce::try_assume_unique_for_key(nonce).ok()?;
                let tag = key.seal_in_place_separate_tag(nonce, Aad::from(aad), plain).ok()?;
                tag.as_ref().try_into().ok()?
            }
            Mode::Ccm128(key) => {
                key.encrypt_inout_detached(nonce.try_into().ok()?, aad, plain.into()).ok()?.into()
            }
            Mode::Ccm256(key) => {
                key.encrypt_inout_detached(nonce.try_into().ok()?, aad, plain.into()).ok()?.into()
            }
            Mode::Unusable => return None,
        };
        head.get_mut(TAG)?.copy_from_slice(&tag);
        Some(())
    }

    /// Reads a part of the message in a sealed body, from `at` on, as much as `out` holds and the message has. Nothing
    /// is authenticated. Returns how many bytes were read.
    pub fn peek(&self, body: &[u8], at: usize, out: &mut [u8]) -> usize {
        self.try_peek(body, at, out).unwrap_or(0)
    }

    fn try_peek(&self, body: &[u8], at: usize, out: &mut [u8]) -> Option<usize> {
        let header = Header::parse(body).ok()?;
        let sealed = body.get(Header::LEN..)?.get(at..)?;
        let len = sealed.len().min(out.len());
        let (out, sealed) = (out.get_mut(..len)?, sealed.get(..len)?);
        out.copy_from_slice(sealed);
        let first = at / BLOCK;
        let mut skip = at % BLOCK;
        let mut done = 0;
        let mut number = u32::try_from(first).ok()?;
        while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let stream = self.key_stream(&header.nonce, number)?;
            let mut count = 0;
            for (byte, key) in rest.iter_mut().zip(stream.iter().skip(skip)) {
                *byte ^= key;
                count += 1;
            }
            (done, skip, number) = (done + count, 0, number.checked_add(1)?);
        }
        Some(len)
    }

    /// The key stream for the message's block of this number: GCM counts from 2 in the last 4 bytes (NIST SP 800-38D
    /// 7.1), CCM from 1 in the last 4, after a byte that says so (RFC 3610 2.3, L = 4).
    fn key_stream(&self, nonce: &Nonce, number: u32) -> Option<[u8; BLOCK]> {
        let mut block = Block::default();
        let (at, first) = match self.cipher {
            Cipher::Aes128Gcm | Cipher::Aes256Gcm => (0, 2),
            Cipher::Aes128Ccm | Cipher::Aes256Ccm => {
                *block.first_mut()? = 3;
                (1, 1)
            }
        };
        let len = self.cipher.nonce_len();
        block.get_mut(at..at + len)?.copy_from_slice(nonce.get(..len)?);
        block.get_mut(12..)?.copy_from_slice(&number.checked_add(first)?.to_be_bytes());
        match &self.block {
            BlockCipher::Aes128(key) => key.encrypt_block(&mut block),
            BlockCipher::Aes256(key) => key.encrypt_block(&mut block),
            BlockCipher::Unusable => return None,
        }
        Some(block.into())
    }
}

/// Bytes of an AES block.
const BLOCK: usize = 16;

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealingKey({:?}, ***)", self.cipher)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(cipher: Cipher, byte: u8) -> SealingKey {
        SealingKey::new(cipher, &vec![byte; cipher.key_len()])
    }

    fn sealed(key: &SealingKey, msg: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; HEADROOM];
        frame.extend_from_slice(msg);
        assert!(key.seal(&mut frame, 77, *b"a nonce, 16 byte"));
        frame
    }

    fn message() -> Vec<u8> {
        (0..200_u8).collect()
    }

    #[test]
    fn what_is_sealed_opens_and_keeps_its_headroom() {
        for cipher in Cipher::ALL {
            let key = key(cipher, 7);
            let frame = sealed(&key, &message());
            assert_eq!(frame[..4], [0, 0, 0, 252], "{cipher:?}");
            let header = Header::parse(&frame[PREFIX..]).unwrap();
            assert_eq!((header.session_id, header.flags, header.original_size), (77, 1, 200));
            assert!(header.nonce[cipher.nonce_len()..].iter().all(|b| *b == 0));
            let open = key.open(&frame[PREFIX..]).unwrap();
            assert_eq!(open[HEADROOM..], message()[..], "{cipher:?}");
        }
    }

    #[test]
    fn any_changed_bit_is_noticed() {
        for cipher in Cipher::ALL {
            let key = key(cipher, 7);
            let body = sealed(&key, &message())[PREFIX..].to_vec();
            for at in 4..body.len() {
                let mut bad = body.clone();
                bad[at] ^= 0x10;
                assert!(key.open(&bad).is_none(), "{cipher:?} byte {at}");
            }
            assert!(self::key(cipher, 8).open(&body).is_none(), "{cipher:?} other key");
            for len in 0..body.len() {
                assert!(key.open(&body[..len]).is_none(), "{cipher:?} cut at {len}");
            }
        }
    }

    #[test]
    fn a_peek_at_any_place_reads_what_is_there() {
        for cipher in Cipher::ALL {
            let key = key(cipher, 7);
            let body = sealed(&key, &message())[PREFIX..].to_vec();
            for at in [0, 1, 15, 16, 17, 64, 100, 199, 200, 300] {
                for len in [0, 1, 16, 33, 64, 250] {
                    let mut out = vec![0; len];
                    let got = key.peek(&body, at, &mut out);
                    let wanted = message().get(at..).unwrap_or_default().to_vec();
                    assert_eq!(got, len.min(wanted.len()), "{cipher:?} {at} {len}");
                    assert_eq!(out[..got], wanted[..got], "{cipher:?} {at} {len}");
                }
            }
            assert_eq!(key.peek(&body[..40], 0, &mut [0; 16]), 0);
        }
    }

    /// RFC 3610, packet vectors, use other lengths of nonce and tag; NIST SP 800-38C has none of ours either. That both
    /// modes are the standard's is checked against each other: an independent computation of the tag by CBC-MAC.
    #[test]
    fn ccm_is_counter_with_cbc_mac() {
        let raw = [7; 16];
        let msg = message();
        let body = sealed(&key(Cipher::Aes128Ccm, 7), &msg)[PREFIX..].to_vec();
        let aes = Aes128::new_from_slice(&raw).unwrap();
        let nonce = &body[20..31];
        let mut input = vec![0x40 | (14 / 2) << 3 | 3];
        input.extend_from_slice(nonce);
        input.extend_from_slice(&200_u32.to_be_bytes());
        input.extend_from_slice(&[0, 32]);
        input.extend_from_slice(&body[AUTHENTICATED]);
        input.resize(input.len().next_multiple_of(16), 0);
        input.extend_from_slice(&msg);
        input.resize(input.len().next_multiple_of(16), 0);
        let mut mac = Block::default();
        for chunk in input.chunks(16) {
            mac.iter_mut().zip(chunk).for_each(|(m, c)| *m ^= c);
            aes.encrypt_block(&mut mac);
        }
        let mut first = Block::default();
        first[0] = 3;
        first[1..12].copy_from_slice(nonce);
        aes.encrypt_block(&mut first);
        let tag: Vec<u8> = mac.iter().zip(first.iter()).map(|(m, s)| m ^ s).collect();
        assert_eq!(body[TAG], tag[..]);
    }

    #[test]
    fn a_key_of_the_wrong_length_does_nothing() {
        for cipher in Cipher::ALL {
            let good = sealed(&key(cipher, 7), &message());
            let bad = SealingKey::new(cipher, &[7; 5]);
            assert!(bad.open(&good[PREFIX..]).is_none());
            assert_eq!(bad.peek(&good[PREFIX..], 0, &mut [0; 8]), 0);
            let mut frame = vec![0; HEADROOM + 8];
            assert!(!bad.seal(&mut frame, 1, [0; 16]));
        }
    }

    #[test]
    fn nonces_start_at_random_and_do_not_repeat() {
        struct High;
        impl Random for High {
            fn fill(&mut self, buf: &mut [u8]) {
                buf.fill(0xff);
            }
        }
        let mut nonces = Nonces::default();
        let first = nonces.next(&mut High);
        assert_eq!(first, [0xff; 16]);
        assert_eq!(nonces.next(&mut High), [0; 16], "counts over the end of its width");
        assert_eq!(nonces.next(&mut High)[0], 1);
    }
}
