//! Reading records: one, or all below a prefix.

use crate::record::{Record, RecordError, Stored};
use crate::store::{MAX_RANGE, MetadataStore, StoreError};

/// Why a record could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The store didn't answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is stored under the key can't be used.
    #[error("{key}: {error}")]
    Record {
        /// The key.
        key: String,
        /// What is wrong.
        error: RecordError,
    },
}

/// Reads the record under `key`, linearizably.
///
/// # Errors
/// [`ReadError`] if the store doesn't answer or the record can't be used.
pub async fn read<R: Record>(
    store: &dyn MetadataStore,
    key: &str,
) -> Result<Option<Stored<R>>, ReadError> {
    match store.get(key).await? {
        None => Ok(None),
        Some(pair) => {
            let record = |error| ReadError::Record { key: key.to_owned(), error };
            Stored::from_pair(pair).map(Some).map_err(record)
        }
    }
}

/// Reads every record below `prefix`, in key order, page by page: each page is linearizable, the
/// whole is not one moment. For lists that are known to be short.
///
/// # Errors
/// [`ReadError`] at the first page or record that can't be read.
pub async fn read_all<R: Record>(
    store: &dyn MetadataStore,
    prefix: &str,
) -> Result<Vec<Stored<R>>, ReadError> {
    let mut records: Vec<Stored<R>> = Vec::new();
    loop {
        let after = records.last().map(|record| record.key.clone());
        let page = store.range(prefix, after.as_deref(), MAX_RANGE).await?;
        for pair in page.pairs {
            let key = pair.key.clone();
            let record = |error| ReadError::Record { key, error };
            records.push(Stored::from_pair(pair).map_err(record)?);
        }
        if !page.more {
            return Ok(records);
        }
    }
}
