//! Why a stream cannot be answered.

use std::io;

use arrow::error::ArrowError;

use crate::extract::{ExtractError, flow};
use crate::store::StoreError;
use crate::store::exchange::ExchangeError;

/// Why a stream cannot be answered.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// The stream is not what is expected: the same one again would not be either.
    #[error("stdin: {0}")]
    Input(String),
    /// The stream ends without its end marker, so nobody knows whether all of it came.
    #[error(
        "stdin: the stream ends after {rows} rows without the end marker of Arrow IPC (ff ff ff ff 00 00 00 00): whoever wrote it died, or \
         did not close its writer; run this part again"
    )]
    Cut {
        /// Rows that came.
        rows: usize,
    },
    /// The stream cannot be read.
    #[error("stdin: {0}; run this part again")]
    Read(io::Error),
    /// What came is damaged.
    #[error("stdin: after {rows} rows comes no valid Arrow IPC message ({reason}); run this part again")]
    Damaged {
        /// Rows that came before.
        rows: usize,
        /// What is wrong.
        reason: String,
    },
    /// The answer cannot be written.
    #[error("stdout: {0}; whoever reads it has gone or has no room")]
    Write(io::Error),
    /// The answer cannot be encoded.
    #[error("the answer cannot be encoded: {0}")]
    Encode(ArrowError),
    /// A feature does not fit.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The network fails.
    #[error(transparent)]
    Extract(#[from] ExtractError),
}

impl EmbedError {
    /// Whether the same input and the same flags will fail again.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Input(_))
    }

    pub(super) fn encode(error: ArrowError) -> Self {
        Self::Encode(error)
    }

    pub(super) fn write(error: ArrowError) -> Self {
        match error {
            ArrowError::IoError(_, source) => Self::Write(source),
            other => Self::Encode(other),
        }
    }
}

impl From<flow::Lost> for EmbedError {
    fn from(lost: flow::Lost) -> Self {
        Self::Extract(lost.into())
    }
}

impl From<ExchangeError> for EmbedError {
    fn from(error: ExchangeError) -> Self {
        match error {
            ExchangeError::Store(error) => Self::Store(error),
            ExchangeError::Arrow(error) => Self::Encode(error),
        }
    }
}
