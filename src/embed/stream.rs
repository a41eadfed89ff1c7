//! The messages of an Arrow IPC stream, up to its end marker
//! (<https://arrow.apache.org/docs/format/Columnar.html#ipc-streaming-format>).
//!
//! Readers of this format take the end of the file at the border of two messages for the end of the stream, so a writer that was
//! killed there is not noticed. Here the marker must be seen.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use arrow_ipc::convert::try_fb_to_schema;
use arrow_ipc::reader::{read_dictionary, read_record_batch};
use arrow_ipc::{BodyCompression, Message, MessageHeader, root_as_message};

use super::EmbedError;
use super::incoming::{Columns, Incoming};

/// What each message begins with.
const CONTINUATION: [u8; 4] = [0xff; 4];
/// Bytes of a message's description.
const MOST_DESCRIPTION: usize = 256 << 20;
/// Bytes of a batch.
const MOST_BODY: usize = 2 << 30;
/// Memory that is taken before the bytes for it have come.
const AT_ONCE: usize = 64 << 20;

/// The batches of a stream, and an error where it does not come to its end.
pub(super) struct Batches<R> {
    from: R,
    schema: Option<(SchemaRef, Columns)>,
    dictionaries: HashMap<i64, ArrayRef>,
    rows: usize,
}

impl<R: Read> Batches<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from, schema: None, dictionaries: HashMap::new(), rows: 0 }
    }

    /// The next batch; none where the end marker stands.
    ///
    /// # Errors
    /// When the stream is none, is damaged, lacks a column, or does not come to its end marker.
    pub(super) fn next_batch(&mut self) -> Result<Option<Incoming>, EmbedError> {
        loop {
            let Some((description, body)) = self.message()? else { return Ok(None) };
            let message = root_as_message(&description).map_err(|error| self.damaged(error))?;
            if let Some(batch) = self.take(&message, &body)? {
                self.rows += batch.num_rows();
                let Some((_, columns)) = &self.schema else { continue };
                return columns.of(&batch).map(Some);
            }
        }
    }

    /// The bytes of the next message: its description and its body; none where the end marker stands.
    fn message(&mut self) -> Result<Option<(Vec<u8>, Buffer)>, EmbedError> {
        let mut start = Vec::with_capacity(8);
        self.from.by_ref().take(8).read_to_end(&mut start).map_err(EmbedError::Read)?;
        if !CONTINUATION.starts_with(&start[..start.len().min(4)]) {
            return Err(if self.schema.is_none() {
                EmbedError::Input(format!(
                    "no Arrow IPC stream (it begins with {:?}{}); write one with pyarrow.ipc.new_stream",
                    String::from_utf8_lossy(&start),
                    if start.starts_with(b"ARROW1") { ", an Arrow file" } else { "" }
                ))
            } else {
                self.damaged("it does not begin with ff ff ff ff")
            });
        }
        let Some(&[_, _, _, _, ref length @ ..]) = start.first_chunk::<8>() else {
            return Err(EmbedError::Cut { rows: self.rows });
        };
        let length = u32::from_le_bytes(*length) as usize;
        if length == 0 {
            return Ok(None);
        }
        if length > MOST_DESCRIPTION {
            return Err(self.damaged(format!("a description of {length} bytes")));
        }
        let description = self.read(length)?;
        let message = root_as_message(&description).map_err(|error| self.damaged(error))?;
        if compression(&message).is_some() {
            return Err(EmbedError::Input("the stream is compressed; write it without compression".into()));
        }
        let length = usize::try_from(message.bodyLength()).map_err(|_| self.damaged("a body of negative length"))?;
        if length > MOST_BODY {
            let reason =
                format!("a batch of {length} bytes is above the limit of 2 GiB; send fewer rows in a batch (256 are plenty)");
            return Err(EmbedError::Input(reason));
        }
        let body = self.read(length)?;
        Ok(Some((description, Buffer::from_vec(body))))
    }

    /// What a message brings: a batch, or something to keep.
    fn take(&mut self, message: &Message<'_>, body: &Buffer) -> Result<Option<RecordBatch>, EmbedError> {
        match (message.header_type(), &self.schema) {
            (MessageHeader::Schema, None) => {
                let schema = message.header_as_schema().ok_or_else(|| self.damaged("a schema without content"))?;
                let schema = Arc::new(try_fb_to_schema(schema).map_err(|error| self.damaged(error))?);
                let columns = Columns::find(&schema)?;
                self.schema = Some((schema, columns));
                Ok(None)
            }
            (MessageHeader::DictionaryBatch, Some((schema, _))) => {
                let batch = message.header_as_dictionary_batch().ok_or_else(|| self.damaged("a dictionary without content"))?;
                let read = read_dictionary(body, batch, schema, &mut self.dictionaries, &message.version());
                read.map_err(|error| self.damaged(error))?;
                Ok(None)
            }
            (MessageHeader::RecordBatch, Some((schema, columns))) => {
                let batch = message.header_as_record_batch().ok_or_else(|| self.damaged("a batch without content"))?;
                let needed = Some(columns.needed());
                let read = read_record_batch(body, batch, Arc::clone(schema), &self.dictionaries, needed, &message.version());
                read.map(Some).map_err(|error| self.damaged(error))
            }
            (MessageHeader::NONE, _) => Ok(None),
            (other, _) => Err(self.damaged(format!("{other:?} is not expected here"))),
        }
    }

    fn read(&mut self, length: usize) -> Result<Vec<u8>, EmbedError> {
        let mut bytes = Vec::with_capacity(length.min(AT_ONCE));
        self.from.by_ref().take(length as u64).read_to_end(&mut bytes).map_err(EmbedError::Read)?;
        if bytes.len() == length { Ok(bytes) } else { Err(EmbedError::Cut { rows: self.rows }) }
    }

    fn damaged(&self, reason: impl std::fmt::Display) -> EmbedError {
        EmbedError::Damaged { rows: self.rows, reason: reason.to_string() }
    }
}

fn compression<'m>(message: &Message<'m>) -> Option<BodyCompression<'m>> {
    match message.header_type() {
        MessageHeader::RecordBatch => message.header_as_record_batch()?.compression(),
        MessageHeader::DictionaryBatch => message.header_as_dictionary_batch()?.data()?.compression(),
        _ => None,
    }
}
