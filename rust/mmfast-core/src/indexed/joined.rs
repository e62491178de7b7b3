//! What the sidecar of a merge says about its parts.

use serde_json::{Map as JsonMap, Value, json};

use super::reader::IndexedDataset;
use super::sidecar::Notes;
use super::source::DocumentSource;
use crate::error::{Error, Result};

/// Gathers the notes of datasets that are joined.
#[derive(Debug, Default)]
pub(super) struct JoinedNotes {
    vocabulary_fingerprint: Option<String>,
    has_unknown_vocabulary: bool,
    merged: Vec<Value>,
}

impl JoinedNotes {
    /// Takes up a part. [`Error::VocabularyMismatch`] if its ids are of another vocabulary than
    /// those before it.
    pub(super) fn add(&mut self, part: &IndexedDataset) -> Result<()> {
        let sidecar = part.sidecar();
        let theirs = sidecar.and_then(|sidecar| sidecar.notes.vocabulary_fingerprint.as_ref());
        match (&self.vocabulary_fingerprint, theirs) {
            (_, None) => self.has_unknown_vocabulary |= part.num_tokens() > 0,
            (None, Some(theirs)) => self.vocabulary_fingerprint = Some(theirs.clone()),
            (Some(ours), Some(theirs)) if ours == theirs => {}
            (Some(ours), Some(theirs)) => {
                return Err(Error::VocabularyMismatch(format!(
                    "{} was written with the vocabulary {theirs}, the datasets before it with \
                     {ours}: their ids do not mean the same; prepare them with one vocabulary",
                    part.prefix().path().display()
                )));
            }
        }
        let provenance = sidecar.map(|sidecar| sidecar.notes.provenance.clone());
        // The parts of a part are named themselves, so that merges of merges do not nest.
        if let Some(Value::Array(parts)) = provenance.as_ref().and_then(|p| p.get("merged")) {
            self.merged.extend_from_slice(parts);
            return Ok(());
        }
        let name = part.prefix().path().file_name();
        self.merged.push(json!({
            "name": name.map(|name| name.to_string_lossy()),
            "documents": part.num_documents(),
            "fingerprint": sidecar.map(|sidecar| format!("{:032x}", sidecar.fingerprint)),
            "provenance": provenance,
        }));
        Ok(())
    }

    /// Writes what was gathered into the notes of the result.
    pub(super) fn finish(self, notes: &mut Notes) {
        if self.merged.is_empty() {
            return;
        }
        if notes.vocabulary_fingerprint.is_none() && !self.has_unknown_vocabulary {
            notes.vocabulary_fingerprint = self.vocabulary_fingerprint;
        }
        notes
            .provenance
            .insert("merged".into(), Value::Array(self.merged));
    }

    /// How many parts are named.
    pub(super) fn num_merged(&self) -> usize {
        self.merged.len()
    }

    /// What was gathered after the first parts, as JSON; nothing if there are no more.
    pub(super) fn encode_after(&self, num_merged: usize) -> Vec<u8> {
        match self.merged.get(num_merged..) {
            None | Some([]) => Vec::new(),
            Some(merged) => json!({
                "vocabulary_fingerprint": self.vocabulary_fingerprint,
                "has_unknown_vocabulary": self.has_unknown_vocabulary,
                "merged": merged,
            })
            .to_string()
            .into_bytes(),
        }
    }

    /// Takes up what [`Self::encode_after`] gave; `None` if it is something else.
    pub(super) fn extend_from_encoded(&mut self, bytes: &[u8]) -> Option<()> {
        if bytes.is_empty() {
            return Some(());
        }
        let mut fields = serde_json::from_slice::<JsonMap<String, Value>>(bytes).ok()?;
        self.vocabulary_fingerprint = match fields.remove("vocabulary_fingerprint")? {
            Value::Null => None,
            Value::String(fingerprint) => Some(fingerprint),
            _ => return None,
        };
        self.has_unknown_vocabulary = fields.get("has_unknown_vocabulary")?.as_bool()?;
        match fields.remove("merged")? {
            Value::Array(merged) => self.merged.extend(merged),
            _ => return None,
        }
        Some(())
    }
}
