//! The cryptography of SMB2: preauthentication integrity, key derivation, signing, sealing (MS-SMB2 3.1.4, 3.3.5.5.3).

pub mod kdf;
pub mod preauth;
pub mod sealing;
pub mod signing;

/// An SMB2 dialect revision (MS-SMB2 2.2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dialect(pub u16);

impl Dialect {
    /// SMB 2.0.2
    pub const SMB202: Self = Self(0x0202);
    /// SMB 2.1
    pub const SMB210: Self = Self(0x0210);
    /// SMB 3.0
    pub const SMB300: Self = Self(0x0300);
    /// SMB 3.0.2
    pub const SMB302: Self = Self(0x0302);
    /// SMB 3.1.1
    pub const SMB311: Self = Self(0x0311);
}
