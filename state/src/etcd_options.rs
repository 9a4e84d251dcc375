//! Where a store in etcd is. Apart from the store, so that builds without it can read a configuration that names it.

use std::{fmt, path::PathBuf, time::Duration};

/// Where etcd is, and how to get in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdOptions {
    /// The members, `host:port` each. One is used at a time, and the next when it does not answer.
    pub members: Vec<String>,
    /// What all keys begin with in etcd.
    pub prefix: String,
    /// Without it the connection is plain.
    pub tls: Option<EtcdTls>,
    /// Name, and a file with the password; read again whenever a connection is made.
    pub user: Option<(String, PathBuf)>,
    /// How long one request may take, whatever happens.
    pub timeout: Duration,
}

/// PEM files, read again whenever a connection is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdTls {
    /// Who signs the members' certificates.
    pub ca: PathBuf,
    /// The client's certificate and key, if the members ask for one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl fmt::Display for EtcdOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "etcds" } else { "etcd" };
        write!(f, "{scheme}://{}{}", self.members.join(","), self.prefix)
    }
}
