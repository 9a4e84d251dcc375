//! Opening the configured store.

use std::sync::Arc;

#[cfg(feature = "etcd")]
use understudy_state::Etcd;
use understudy_state::{Embedded, Memory, Store, StoreError};

use crate::config::StoreUrl;

/// Opens the store, or makes it.
pub(crate) async fn open(url: &StoreUrl) -> Result<Arc<dyn Store>, StoreError> {
    Ok(match url {
        StoreUrl::Memory => Arc::new(Memory::default()),
        StoreUrl::File(dir) => Arc::new(Embedded::open(dir)?),
        #[cfg(feature = "etcd")]
        StoreUrl::Etcd(options) => Arc::new(Etcd::open(options.clone()).await?),
        #[cfg(not(feature = "etcd"))]
        StoreUrl::Etcd(options) => {
            let what = "this understudy was built without the feature etcd".into();
            return Err(StoreError::Open { place: options.to_string(), what });
        }
    })
}
