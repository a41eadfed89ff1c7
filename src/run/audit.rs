//! What an audit leaves in a run directory; it knows no head, and may come before the first fit.

use std::fs;

use super::{RunDir, RunError};
use crate::audit::{AUDIT_SCHEMA, Summary};

/// Each finding.
pub const AUDIT_FINDINGS: &str = "audit.parquet";
/// The summary.
pub const AUDIT: &str = "audit.json";
/// The error against the number of training images.
pub const DATA_CURVE: &str = "data_curve.csv";

impl RunDir {
    /// Reads `audit.json`; none where there was no audit.
    ///
    /// # Errors
    /// When the file is damaged or of another version.
    pub fn audit(&self) -> Result<Option<Summary>, RunError> {
        let path = self.file(AUDIT);
        let damaged = |reason: String| RunError::DamagedAudit { path: path.clone(), reason };
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(RunError::Io { path, source }),
        };
        let value: serde_json::Value = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        match value.get("schema").and_then(serde_json::Value::as_u64) {
            Some(schema) if schema == u64::from(AUDIT_SCHEMA) => {}
            found => {
                let found = found.map_or_else(|| "none".to_owned(), |schema| schema.to_string());
                return Err(damaged(format!("schema {found}, this tlpipe reads schema {AUDIT_SCHEMA}")));
            }
        }
        serde_json::from_value(value).map(Some).map_err(|error| damaged(error.to_string()))
    }

    /// Writes `audit.json`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_audit(&self, summary: &Summary) -> Result<(), RunError> {
        let text = serde_json::to_vec_pretty(summary)
            .map_err(|error| RunError::DamagedAudit { path: self.file(AUDIT), reason: error.to_string() })?;
        self.write(AUDIT, &text)
    }
}
