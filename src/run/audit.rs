//! What an audit leaves in a run directory; it knows no head, and may come before the first fit.

use std::fs;
use std::io::Write as _;

use super::{RunDir, RunError};
use crate::audit::{AUDIT_SCHEMA, Summary};
use crate::persist::Draft;

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

    /// Writes an audit in place of an earlier one, which stays until both files are on the disk.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_audit(&self, summary: &Summary, findings: &[u8]) -> Result<(), RunError> {
        let drafted = |name: &str, content: &[u8]| {
            let path = self.file(name);
            let draft = Draft::create(&path).and_then(|mut draft| draft.file().write_all(content).map(|()| draft));
            draft.map(|draft| (path.clone(), draft)).map_err(|source| RunError::Io { path, source })
        };
        let drafts = [drafted(AUDIT_FINDINGS, findings)?, drafted(AUDIT, &self.encoded(summary)?)?];
        self.remove(AUDIT)?;
        self.remove(DATA_CURVE)?;
        for (path, draft) in drafts {
            draft.keep().map_err(|source| RunError::Io { path, source })?;
        }
        Ok(())
    }

    /// Writes the summary of the audit that is there, which has a data curve now.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_summary(&self, summary: &Summary) -> Result<(), RunError> {
        self.write(AUDIT, &self.encoded(summary)?)
    }

    fn encoded(&self, summary: &Summary) -> Result<Vec<u8>, RunError> {
        serde_json::to_vec_pretty(summary)
            .map_err(|error| RunError::DamagedAudit { path: self.file(AUDIT), reason: error.to_string() })
    }
}
