//! What a producer writes, and in what order it promises it.
//!
//! It writes **generations**, numbered from 1, one after the other under one prefix, so each takes the
//! place of the one before. What a generation holds is a function of its number, so that whoever finds
//! it can tell whether it is right, and whether it is whole. There are three kinds, by turns: written
//! with a journal, so that it can be gone on with; written without; and merged from the generation
//! before and a part of its own.

mod documents;

use std::fmt;

use mmfast_core::indexed::{
    DatasetWriter, Dtype, IndexedDataset, Notes, Prefix, Tokens, Verify, merge,
};
use mmfast_core::vfs::Disk;
use mmfast_core::{Error, Result};

pub use documents::{Document, Kind, documents, flush_points, kind};

/// Number type of all that is written here.
pub const DTYPE: Dtype = Dtype::I32;

/// What a producer tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// It has started.
    Ready,
    /// It goes on with this generation, of which it has found so many documents.
    Begun(u64, u64),
    /// So many documents of this generation are durable.
    Acknowledged(u64, u64),
    /// The generation is complete and is being put in place.
    Publishing(u64),
    /// The generation is in place.
    Published(u64),
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => write!(f, "ready 0 0"),
            Self::Begun(generation, count) => write!(f, "begun {generation} {count}"),
            Self::Acknowledged(generation, count) => write!(f, "acknowledged {generation} {count}"),
            Self::Publishing(generation) => write!(f, "publishing {generation} 0"),
            Self::Published(generation) => write!(f, "published {generation} 0"),
        }
    }
}

impl Word {
    /// Reads a line of a producer; `None` for a line that was cut short.
    pub fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(' ');
        let (name, generation, count) = (fields.next()?, fields.next()?, fields.next()?);
        let (generation, count) = (generation.parse().ok()?, count.parse().ok()?);
        match name {
            "ready" => Some(Self::Ready),
            "begun" => Some(Self::Begun(generation, count)),
            "acknowledged" => Some(Self::Acknowledged(generation, count)),
            "publishing" => Some(Self::Publishing(generation)),
            "published" => Some(Self::Published(generation)),
            _ => None,
        }
    }
}

/// Writes the generation after the one that is there, going on where a journal says.
pub fn produce(at: &Prefix, tell: &mut dyn FnMut(Word) -> Result<()>) -> Result<()> {
    let generation = match published(at)? {
        Some(documents) => generation_of(&documents)? + 1,
        None => 1,
    };
    match kind(generation) {
        Kind::Journaled => {
            let mut writer = resume(at)?;
            let found = writer.written().num_documents;
            tell(Word::Begun(generation, found))?;
            let flush_points = flush_points(generation);
            let num_found = usize::try_from(found).unwrap_or(usize::MAX);
            for (document, count) in documents(generation).iter().zip(1..).skip(num_found) {
                add(&mut writer, document)?;
                if flush_points.contains(&count) {
                    let durable = writer.flush()?;
                    tell(Word::Acknowledged(generation, durable.num_documents))?;
                }
            }
            tell(Word::Publishing(generation))?;
            writer.finish()?;
        }
        Kind::Plain => {
            tell(Word::Begun(generation, 0))?;
            let writer = written(at, generation)?;
            tell(Word::Publishing(generation))?;
            writer.finish()?;
        }
        Kind::Merged => {
            tell(Word::Begun(generation, 0))?;
            let part = Prefix::new(at.path().with_extension("part"))?;
            written(&part, generation)?.finish()?;
            tell(Word::Publishing(generation))?;
            merge(at, &[at.clone(), part])?;
        }
    }
    tell(Word::Published(generation))
}

/// A writer that goes on where a journal says.
pub fn resume(at: &Prefix) -> Result<DatasetWriter> {
    DatasetWriter::resume(at, DTYPE, true, Notes::default())
}

/// All documents of the dataset that is there, each byte of it checked.
pub fn published(at: &Prefix) -> Result<Option<Vec<Document>>> {
    let dataset = match IndexedDataset::open_on(&Disk, at, Verify::Full) {
        Ok(dataset) => dataset,
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    read(&dataset).map(Some)
}

/// The last document of a generation is its number.
pub fn generation_of(documents: &[Document]) -> Result<u64> {
    let last = documents.last().and_then(|document| document.first());
    let number = last.and_then(|(ids, _)| u64::try_from(*ids.first()?).ok());
    number.ok_or_else(|| Error::argument("the last document is not the number of a generation"))
}

fn read(dataset: &IndexedDataset) -> Result<Vec<Document>> {
    use mmfast_core::indexed::DocumentSource;
    let document = |document| {
        let sequences = dataset.document_sequences(document)?;
        let sequence = |sequence| {
            let ids = dataset.ids(sequence..sequence + 1)?;
            Ok((ids, dataset.mode(sequence)?))
        };
        sequences.map(sequence).collect()
    };
    (0..dataset.num_documents()).map(document).collect()
}

/// A writer without a journal that holds a generation's own documents.
fn written(at: &Prefix, generation: u64) -> Result<DatasetWriter> {
    let mut writer = DatasetWriter::create(at, DTYPE, true)?;
    for document in documents::own_documents(generation) {
        add(&mut writer, &document)?;
    }
    Ok(writer)
}

fn add(writer: &mut DatasetWriter, document: &Document) -> Result<()> {
    for (ids, mode) in document {
        writer.add_sequence(Tokens::I64(ids), *mode)?;
    }
    writer.end_document();
    Ok(())
}
