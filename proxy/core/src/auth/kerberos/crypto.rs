//! Kerberos' encryption types (RFC 3961, 3962, 8009, 4757), as far as tickets of today have them.
//!
//! The primitives are AWS-LC's and RustCrypto's; here is only how Kerberos puts them together. Randomness comes in.

use std::fmt;

use aws_lc_rs::{
    cipher::{
        self, AES_128, AES_256, DecryptingKey, DecryptionContext, EncryptingKey, EncryptionContext,
        UnboundCipherKey,
    },
    constant_time, hmac,
    iv::FixedLength,
};
use zeroize::Zeroizing;

use crate::{
    auth::ntlm::proof::{hmac_md5, rc4},
    random::Random,
};

/// The size of an AES block, and of a confounder of AES.
const BLOCK: usize = 16;

/// What a key is used for (RFC 4120 7.5.1, RFC 4121 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage(pub(crate) u32);

impl Usage {
    /// The encrypted part of a ticket.
    pub(crate) const TICKET: Self = Self(2);
    /// The authenticator in AP-REQ.
    pub(crate) const AUTHENTICATOR: Self = Self(11);
    /// The encrypted part of AP-REP.
    pub(crate) const AP_REP: Self = Self(12);
    /// A MIC token of the acceptor.
    pub(crate) const ACCEPTOR_SIGN: Self = Self(23);
    /// A MIC token of the initiator.
    pub(crate) const INITIATOR_SIGN: Self = Self(25);
}

/// An encryption type that can be worked with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EncType {
    /// aes128-cts-hmac-sha1-96 (RFC 3962)
    Aes128Sha1,
    /// aes256-cts-hmac-sha1-96 (RFC 3962)
    Aes256Sha1,
    /// aes128-cts-hmac-sha256-128 (RFC 8009)
    Aes128Sha256,
    /// aes256-cts-hmac-sha384-192 (RFC 8009)
    Aes256Sha384,
    /// rc4-hmac (RFC 4757)
    Rc4,
}

impl EncType {
    /// Every one, the strongest first.
    pub const ALL: [Self; 5] =
        [Self::Aes256Sha384, Self::Aes128Sha256, Self::Aes256Sha1, Self::Aes128Sha1, Self::Rc4];

    /// By its number (RFC 3961 8). `None` if it cannot be worked with.
    pub fn from_number(number: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|etype| i64::from(etype.number()) == number)
    }

    /// Its number.
    pub fn number(self) -> i32 {
        match self {
            Self::Aes128Sha1 => 17,
            Self::Aes256Sha1 => 18,
            Self::Aes128Sha256 => 19,
            Self::Aes256Sha384 => 20,
            Self::Rc4 => 23,
        }
    }

    /// Its name, as the tools of MIT and Heimdal print it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aes128Sha1 => "aes128-cts-hmac-sha1-96",
            Self::Aes256Sha1 => "aes256-cts-hmac-sha1-96",
            Self::Aes128Sha256 => "aes128-cts-hmac-sha256-128",
            Self::Aes256Sha384 => "aes256-cts-hmac-sha384-192",
            Self::Rc4 => "arcfour-hmac",
        }
    }

    /// How long a key is, in bytes.
    pub fn key_len(self) -> usize {
        match self {
            Self::Aes128Sha1 | Self::Aes128Sha256 | Self::Rc4 => 16,
            Self::Aes256Sha1 | Self::Aes256Sha384 => 32,
        }
    }

    /// How long the checksum of a message is, in bytes.
    fn mac_len(self) -> usize {
        match self {
            Self::Aes128Sha1 | Self::Aes256Sha1 => 12,
            Self::Aes128Sha256 | Self::Rc4 => 16,
            Self::Aes256Sha384 => 24,
        }
    }

    fn hmac(self) -> hmac::Algorithm {
        match self {
            Self::Aes128Sha1 | Self::Aes256Sha1 | Self::Rc4 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            Self::Aes128Sha256 => hmac::HMAC_SHA256,
            Self::Aes256Sha384 => hmac::HMAC_SHA384,
        }
    }
}

/// What is derived from a key for one usage (RFC 3961 5.3).
#[derive(Clone, Copy)]
enum Purpose {
    Encrypt = 0xaa,
    Integrity = 0x55,
    Checksum = 0x99,
}

/// A key of one encryption type, of the right length.
#[derive(Clone)]
pub struct Key {
    etype: EncType,
    bytes: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({}, ***)", self.etype.name())
    }
}

impl Key {
    /// Takes a copy of the bytes. `None` if they are not as many as the type has.
    pub fn new(etype: EncType, bytes: &[u8]) -> Option<Self> {
        (bytes.len() == etype.key_len()).then(|| Self { etype, bytes: Zeroizing::new(bytes.to_vec()) })
    }

    /// A key nobody knows.
    pub(crate) fn random(etype: EncType, random: &mut dyn Random) -> Self {
        let mut bytes = Zeroizing::new(vec![0; etype.key_len()]);
        random.fill(&mut bytes);
        Self { etype, bytes }
    }

    /// Its type.
    pub fn etype(&self) -> EncType {
        self.etype
    }

    /// The key.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Checks and decrypts. `None` if it was not encrypted with this key for this usage, or is damaged.
    pub(crate) fn decrypt(&self, usage: Usage, data: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        match self.etype {
            EncType::Rc4 => self.rc4_decrypt(usage, data),
            EncType::Aes128Sha1 | EncType::Aes256Sha1 => {
                let (cipher, mac) = data.split_at_checked(data.len().checked_sub(self.etype.mac_len())?)?;
                let mut plain = self.aes(usage, Purpose::Encrypt)?.decrypt(cipher)?;
                self.holds(usage, Purpose::Integrity, &[&plain], mac).then_some(())?;
                plain.drain(..BLOCK);
                Some(plain)
            }
            EncType::Aes128Sha256 | EncType::Aes256Sha384 => {
                let (cipher, mac) = data.split_at_checked(data.len().checked_sub(self.etype.mac_len())?)?;
                self.holds(usage, Purpose::Integrity, &[&[0; BLOCK], cipher], mac).then_some(())?;
                let mut plain = self.aes(usage, Purpose::Encrypt)?.decrypt(cipher)?;
                plain.drain(..BLOCK);
                Some(plain)
            }
        }
    }

    /// Encrypts with a fresh confounder.
    pub(crate) fn encrypt(&self, usage: Usage, plain: &[u8], random: &mut dyn Random) -> Option<Vec<u8>> {
        if self.etype == EncType::Rc4 {
            return Some(self.rc4_encrypt(usage, plain, random));
        }
        let mut data = Zeroizing::new(vec![0; BLOCK]);
        random.fill(&mut data);
        data.extend_from_slice(plain);
        let mut out = self.aes(usage, Purpose::Encrypt)?.encrypt(&data)?;
        let mac = if matches!(self.etype, EncType::Aes128Sha1 | EncType::Aes256Sha1) {
            self.mac(usage, Purpose::Integrity, &[&data])
        } else {
            self.mac(usage, Purpose::Integrity, &[&[0; BLOCK], &out])
        };
        out.extend_from_slice(&mac?);
        Some(out)
    }

    /// The keyed checksum that belongs to the type (RFC 3961 6.1, RFC 8009 5). `None` for RC4, whose checksums are made
    /// in another way.
    pub(crate) fn checksum(&self, usage: Usage, parts: &[&[u8]]) -> Option<Vec<u8>> {
        if self.etype == EncType::Rc4 { None } else { self.mac(usage, Purpose::Checksum, parts) }
    }

    /// Whether `mac` is the checksum over the parts.
    pub(crate) fn verify_checksum(&self, usage: Usage, parts: &[&[u8]], mac: &[u8]) -> bool {
        self.etype != EncType::Rc4 && self.holds(usage, Purpose::Checksum, parts, mac)
    }

    fn holds(&self, usage: Usage, purpose: Purpose, parts: &[&[u8]], mac: &[u8]) -> bool {
        let expected = self.mac(usage, purpose, parts);
        expected.is_some_and(|expected| constant_time::verify_slices_are_equal(&expected, mac).is_ok())
    }

    fn mac(&self, usage: Usage, purpose: Purpose, parts: &[&[u8]]) -> Option<Vec<u8>> {
        let key = hmac::Key::new(self.etype.hmac(), &self.derive(usage, purpose)?);
        let mut mac = hmac::Context::with_key(&key);
        parts.iter().for_each(|part| mac.update(part));
        Some(mac.sign().as_ref().get(..self.etype.mac_len())?.to_vec())
    }

    fn aes(&self, usage: Usage, purpose: Purpose) -> Option<Aes> {
        Aes::new(&self.derive(usage, purpose)?)
    }

    /// The key for a usage and purpose: DK of RFC 3961 5.1, or KDF-HMAC-SHA2 of RFC 8009 3.
    fn derive(&self, usage: Usage, purpose: Purpose) -> Option<Zeroizing<Vec<u8>>> {
        let [a, b, c, d] = usage.0.to_be_bytes();
        let constant = [a, b, c, d, purpose as u8];
        match self.etype {
            EncType::Rc4 => None,
            EncType::Aes128Sha1 | EncType::Aes256Sha1 => {
                let aes = Aes::new(&self.bytes)?;
                let mut block = fold(&constant);
                let mut out = Zeroizing::new(Vec::with_capacity(self.etype.key_len()));
                while out.len() < self.etype.key_len() {
                    aes.cbc_encrypt(&mut block)?;
                    out.extend_from_slice(&block);
                }
                Some(out)
            }
            EncType::Aes128Sha256 | EncType::Aes256Sha384 => {
                // What checks is as long as the checksum, what encrypts as long as the key.
                let len = match purpose {
                    Purpose::Encrypt => self.etype.key_len(),
                    Purpose::Integrity | Purpose::Checksum => self.etype.mac_len(),
                };
                let bits = u32::try_from(len * 8).ok()?;
                let mut mac = hmac::Context::with_key(&hmac::Key::new(self.etype.hmac(), &self.bytes));
                mac.update(&1_u32.to_be_bytes());
                mac.update(&constant);
                mac.update(&[0]);
                mac.update(&bits.to_be_bytes());
                Some(Zeroizing::new(mac.sign().as_ref().get(..len)?.to_vec()))
            }
        }
    }

    fn rc4_decrypt(&self, usage: Usage, data: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        const CONFOUNDER: usize = 8;
        let (mac, cipher) = data.split_at_checked(16)?;
        let base = Zeroizing::new(hmac_md5(&self.bytes, &[&usage.0.to_le_bytes()]));
        let mut plain = Zeroizing::new(cipher.to_vec());
        rc4(&*Zeroizing::new(hmac_md5(&*base, &[mac])), &mut plain);
        constant_time::verify_slices_are_equal(&hmac_md5(&*base, &[&plain]), mac).ok()?;
        if plain.len() < CONFOUNDER {
            return None;
        }
        plain.drain(..CONFOUNDER);
        Some(plain)
    }

    fn rc4_encrypt(&self, usage: Usage, plain: &[u8], random: &mut dyn Random) -> Vec<u8> {
        let mut data = Zeroizing::new(vec![0; 8]);
        random.fill(&mut data);
        data.extend_from_slice(plain);
        let base = Zeroizing::new(hmac_md5(&self.bytes, &[&usage.0.to_le_bytes()]));
        let mac = hmac_md5(&*base, &[&data]);
        rc4(&*Zeroizing::new(hmac_md5(&*base, &[&mac])), &mut data);
        [&mac[..], &data].concat()
    }
}

/// n-fold (RFC 3961 5.1) of five bytes to a block: copies, each turned right by 13 bits more, added with end-around carry.
fn fold(input: &[u8; 5]) -> [u8; BLOCK] {
    const LEN: usize = 5;
    // The least common multiple of 5 and 16: so many bytes are added up.
    const TOTAL: usize = LEN * BLOCK;
    let bit = |at: usize| {
        let (copy, within) = (at / (LEN * 8), at % (LEN * 8));
        // A turn to the right by 13 a copy.
        let from = (within + LEN * 8 - (13 * copy) % (LEN * 8)) % (LEN * 8);
        input.get(from / 8).copied().unwrap_or(0) >> (7 - from % 8) & 1
    };
    let mut sums = [0_u32; BLOCK];
    for byte in 0..TOTAL {
        let value = (0..8).fold(0_u32, |value, at| value << 1 | u32::from(bit(byte * 8 + at)));
        if let Some(sum) = sums.get_mut(byte % BLOCK) {
            *sum += value;
        }
    }
    // Carries go to the left, and from the first byte around to the last. Two rounds settle them.
    let mut carry = 0;
    for _ in 0..3 {
        for sum in sums.iter_mut().rev() {
            *sum += carry;
            carry = *sum >> 8;
            *sum &= 0xff;
        }
    }
    sums.map(|sum| u8::try_from(sum & 0xff).unwrap_or(0))
}

/// AES by CBC with ciphertext stealing, the last two blocks swapped, and an IV of zeros (RFC 3962 5).
struct Aes {
    encrypting: EncryptingKey,
    decrypting: DecryptingKey,
}

impl Aes {
    fn new(key: &[u8]) -> Option<Self> {
        let algorithm: &'static cipher::Algorithm = if key.len() == 16 { &AES_128 } else { &AES_256 };
        let unbound = || UnboundCipherKey::new(algorithm, key).ok();
        Some(Self {
            encrypting: EncryptingKey::cbc(unbound()?).ok()?,
            decrypting: DecryptingKey::cbc(unbound()?).ok()?,
        })
    }

    /// Whole blocks, in place.
    fn cbc_encrypt(&self, data: &mut [u8]) -> Option<()> {
        let context = EncryptionContext::Iv128(FixedLength::from([0; BLOCK]));
        self.encrypting.less_safe_encrypt(data, context).ok()?;
        Some(())
    }

    fn cbc_decrypt(&self, data: &mut [u8]) -> Option<()> {
        let context = DecryptionContext::Iv128(FixedLength::from([0; BLOCK]));
        self.decrypting.decrypt(data, context).ok()?;
        Some(())
    }

    /// At least one block.
    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let len = plain.len();
        if len < BLOCK {
            return None;
        }
        let mut data = plain.to_vec();
        data.resize(len.next_multiple_of(BLOCK), 0);
        self.cbc_encrypt(&mut data)?;
        if data.len() > BLOCK {
            // The last block goes before the one that it stole from.
            let last = data.len() - BLOCK;
            data.get_mut(last - BLOCK..)?.rotate_left(BLOCK);
            data.truncate(len);
        }
        Some(data)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let len = cipher.len();
        if len < BLOCK {
            return None;
        }
        let mut data = Zeroizing::new(cipher.to_vec());
        if len > BLOCK {
            // Give back what was stolen: the tail of the last block but one is in the last block's plain text.
            let cut = (len - 1) / BLOCK * BLOCK;
            let swapped: [u8; BLOCK] = cipher.get(cut - BLOCK..cut)?.try_into().ok()?;
            let mut open = Zeroizing::new(swapped);
            self.cbc_decrypt(&mut *open)?;
            let stolen = Zeroizing::new(open.get(len - cut..)?.to_vec());
            data.truncate(cut - BLOCK);
            data.extend_from_slice(cipher.get(cut..)?);
            data.extend_from_slice(&stolen);
            data.extend_from_slice(&swapped);
        }
        self.cbc_decrypt(&mut data)?;
        data.truncate(len);
        Some(data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    /// Gives the confounder of an example.
    struct Fixed(Vec<u8>);

    impl Random for Fixed {
        fn fill(&mut self, buf: &mut [u8]) {
            buf.copy_from_slice(&self.0);
        }
    }

    fn key(etype: EncType, bytes: &str) -> Key {
        Key::new(etype, &hex(bytes)).unwrap()
    }

    /// RFC 3962, appendix B: CBC with ciphertext stealing, of several lengths.
    #[test]
    fn stealing_as_published() {
        let aes = Aes::new(&hex("63 68 69 63 6b 65 6e 20 74 65 72 69 79 61 6b 69")).unwrap();
        let plain = b"I would like the General Gau's Chicken, please, and wonton soup.";
        for (len, cipher) in [
            (17, "c6 35 35 68 f2 bf 8c b4 d8 a5 80 36 2d a7 ff 7f 97"),
            (
                31,
                "fc 00 78 3e 0e fd b2 c1 d4 45 d4 c8 ef f7 ed 22 97 68 72 68 d6 ec cc c0 c0 7b 25 e2 5e cf e5",
            ),
            (
                32,
                "39 31 25 23 a7 86 62 d5 be 7f cb cc 98 eb f5 a8 97 68 72 68 d6 ec cc c0 c0 7b 25 e2 5e cf e5 84",
            ),
            (
                47,
                "97 68 72 68 d6 ec cc c0 c0 7b 25 e2 5e cf e5 84 b3 ff fd 94 0c 16 a1 8c 1b 55 49 d2 f8 38 02 9e \
                 39 31 25 23 a7 86 62 d5 be 7f cb cc 98 eb f5",
            ),
            (
                64,
                "97 68 72 68 d6 ec cc c0 c0 7b 25 e2 5e cf e5 84 39 31 25 23 a7 86 62 d5 be 7f cb cc 98 eb f5 a8 \
                 48 07 ef e8 36 ee 89 a5 26 73 0d bc 2f 7b c8 40 9d ad 8b bb 96 c4 cd c0 3b c1 03 e1 a1 94 bb d8",
            ),
        ] {
            assert_eq!(aes.encrypt(&plain[..len]).unwrap(), hex(cipher), "{len}");
            assert_eq!(aes.decrypt(&hex(cipher)).unwrap()[..], plain[..len], "{len}");
        }
    }

    /// RFC 3961 has no example of AES; these are of the tests of MIT Kerberos (crypto_tests/t_derive.c).
    #[test]
    fn derivation_by_folding_as_published() {
        let key = key(EncType::Aes128Sha1, "42 26 3c 6e 89 f4 fc 28 b8 df 68 ee 09 79 9f 15");
        for (purpose, derived) in [
            (Purpose::Checksum, "34 28 0a 38 2b c9 27 69 b2 da 2f 9e f0 66 85 4b"),
            (Purpose::Encrypt, "5b 14 fc 4e 25 0e 14 dd f9 dc cf 1a f6 67 4f 53"),
            (Purpose::Integrity, "4e d3 10 63 62 16 84 f0 9a e8 d8 99 91 af 3e 8f"),
        ] {
            assert_eq!(key.derive(Usage(2), purpose).unwrap().to_vec(), hex(derived));
        }
    }

    /// RFC 8009, appendix A: derived keys and encryption.
    #[test]
    fn aes_with_sha2_as_published() {
        let k128 = key(EncType::Aes128Sha256, "37 05 D9 60 80 C1 77 28 A0 E8 00 EA B6 E0 D2 3C");
        let k256 = key(
            EncType::Aes256Sha384,
            "6D 40 4D 37 FA F7 9F 9D F0 D3 35 68 D3 20 66 98 00 EB 48 36 47 2E A8 A0 26 D1 6B 71 82 46 0C 52",
        );
        for (key, purpose, derived) in [
            (&k128, Purpose::Checksum, "B3 1A 01 8A 48 F5 47 76 F4 03 E9 A3 96 32 5D C3"),
            (&k128, Purpose::Encrypt, "9B 19 7D D1 E8 C5 60 9D 6E 67 C3 E3 7C 62 C7 2E"),
            (&k128, Purpose::Integrity, "9F DA 0E 56 AB 2D 85 E1 56 9A 68 86 96 C2 6A 6C"),
            (
                &k256,
                Purpose::Checksum,
                "EF 57 18 BE 86 CC 84 96 3D 8B BB 50 31 E9 F5 C4 BA 41 F2 8F AF 69 E7 3D",
            ),
            (
                &k256,
                Purpose::Encrypt,
                "56 AB 22 BE E6 3D 82 D7 BC 52 27 F6 77 3F 8E A7 A5 EB 1C 82 51 60 C3 83 12 98 0C 44 2E 5C 7E 49",
            ),
            (
                &k256,
                Purpose::Integrity,
                "69 B1 65 14 E3 CD 8E 56 B8 20 10 D5 C7 30 12 B6 22 C4 D0 0F FC 23 ED 1F",
            ),
        ] {
            assert_eq!(key.derive(Usage(2), purpose).unwrap().to_vec(), hex(derived));
        }
        for (key, plain, confounder, cipher) in [
            (
                &k128,
                "",
                "7E 58 95 EA F2 67 24 35 BA D8 17 F5 45 A3 71 48",
                "EF 85 FB 89 0B B8 47 2F 4D AB 20 39 4D CA 78 1D AD 87 7E DA 39 D5 0C 87 0C 0D 5A 0A 8E 48 C7 18",
            ),
            (
                &k128,
                "00 01 02 03 04 05",
                "7B CA 28 5E 2F D4 13 0F B5 5B 1A 5C 83 BC 5B 24",
                "84 D7 F3 07 54 ED 98 7B AB 0B F3 50 6B EB 09 CF B5 54 02 CE F7 E6 87 7C E9 9E 24 7E 52 D1 6E D4 \
                 42 1D FD F8 97 6C",
            ),
            (
                &k256,
                "00 01 02 03 04 05 06 07 08 09 0A 0B 0C 0D 0E 0F",
                "53 BF 8A 0D 10 52 65 D4 E2 76 42 86 24 CE 5E 63",
                "BC 47 FF EC 79 98 EB 91 E8 11 5C F8 D1 9D AC 4B BB E2 E1 63 E8 7D D3 7F 49 BE CA 92 02 77 64 F6 \
                 8C F5 1F 14 D7 98 C2 27 3F 35 DF 57 4D 1F 93 2E 40 C4 FF 25 5B 36 A2 66",
            ),
        ] {
            let plain = hex(plain);
            let made = key.encrypt(Usage(2), &plain, &mut Fixed(hex(confounder))).unwrap();
            assert_eq!(made, hex(cipher));
            assert_eq!(key.decrypt(Usage(2), &made).unwrap()[..], plain[..]);
        }
    }

    /// Of the tests of MIT Kerberos (crypto_tests/t_decrypt.c).
    #[test]
    fn rc4_as_published() {
        for (bytes, usage, plain, cipher) in [
            (
                "F8 1F EC 39 25 5F 57 84 E8 50 C4 37 7C 88 BD 85",
                0,
                "",
                "02 C1 EB 15 58 61 44 12 2E C7 17 76 3D D3 48 BF 00 43 4D DC 65 85 95 4C",
            ),
            (
                "67 D1 30 0D 28 12 23 86 7F 96 47 FF 48 72 12 73",
                1,
                "31",
                "61 56 E0 CC 04 E0 A0 87 4F 9F DA 00 8F 49 8A 7A DB BC 80 B7 0B 14 DD DB C0",
            ),
        ] {
            let opened = key(EncType::Rc4, bytes).decrypt(Usage(usage), &hex(cipher)).unwrap();
            assert_eq!(opened.to_vec(), hex(plain));
        }
    }

    /// Whatever is changed in what a key encrypted, or in how it is used, gives nothing.
    #[test]
    fn nothing_but_the_whole_is_decrypted() {
        for etype in EncType::ALL {
            let key = Key::new(etype, &vec![7; etype.key_len()]).unwrap();
            let confounder = if etype == EncType::Rc4 { 8 } else { 16 };
            for len in [0, 1, 15, 16, 17, 40] {
                let plain = vec![9; len];
                let cipher = key.encrypt(Usage::TICKET, &plain, &mut Fixed(vec![3; confounder])).unwrap();
                assert_eq!(key.decrypt(Usage::TICKET, &cipher).unwrap()[..], plain[..], "{etype:?} {len}");
                assert!(key.decrypt(Usage::AP_REP, &cipher).is_none());
                for at in 0..cipher.len() {
                    let mut damaged = cipher.clone();
                    damaged[at] ^= 1;
                    assert!(key.decrypt(Usage::TICKET, &damaged).is_none(), "{etype:?} {len} at {at}");
                    assert!(
                        key.decrypt(Usage::TICKET, &cipher[..at]).is_none(),
                        "{etype:?} {len} cut at {at}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_key_has_the_length_of_its_type_and_does_not_print() {
        assert!(Key::new(EncType::Aes256Sha1, &[1; 16]).is_none());
        assert_eq!(format!("{:?}", Key::new(EncType::Rc4, &[0xa7; 16]).unwrap()), "Key(arcfour-hmac, ***)");
    }
}
