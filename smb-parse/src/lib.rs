//! The SMB2/3 wire.
