//! A mapped `.idx`, every entry of it checked when it is opened.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::header::{Dtype, Header, Layout};
use super::map::Map;
use super::source::out_of_range;
use crate::error::{Error, Result};
use crate::vfs::File;

/// The arrays of an index. They lie unaligned in the file, so entries are loaded byte by byte.
#[derive(Debug)]
pub(super) struct Index {
    path: PathBuf,
    header: Header,
    layout: Layout,
    map: Map,
    num_tokens: u64,
}

impl Index {
    /// Maps an index and checks it completely, in one pass over its arrays.
    pub(super) fn open(file: &File) -> Result<Self> {
        Self::check(file.path(), Map::new(file)?)
    }

    /// Maps an index and checks its header and ends only, in constant time. An entry that is wrong is
    /// an error when it leads out of a file, and else whatever it says.
    pub(super) fn open_unchecked(file: &File) -> Result<Self> {
        let mut index = Self::parse(file.path(), Map::new(file)?)?;
        let last = index.pointers().last().zip(index.raw_lengths().last());
        index.num_tokens = last.map_or(0, |(&pointer, &length)| {
            let before = u64::from_le_bytes(pointer) / index.dtype().item_bytes() as u64;
            before.saturating_add(u64::from(u32::from_le_bytes(length)))
        });
        let boundaries = index.documents();
        let ends = boundaries.first().zip(boundaries.last());
        let ends = ends.map(|(&first, &last)| [first, last].map(u64::from_le_bytes));
        if ends != Some([0, index.num_sequences()]) {
            // The pass over all boundaries says what is wrong with them.
            index.check_documents()?;
        }
        Ok(index)
    }

    fn check(path: &Path, map: Map) -> Result<Self> {
        let mut index = Self::parse(path, map)?;
        index.num_tokens = index.check_sequences()?;
        index.check_documents()?;
        Ok(index)
    }

    fn parse(path: &Path, map: Map) -> Result<Self> {
        let header = Header::parse(path, map.bytes())?;
        let layout = Layout::new(path, &header, map.bytes().len() as u64)?;
        Ok(Self {
            path: path.to_path_buf(),
            header,
            layout,
            map,
            num_tokens: 0,
        })
    }

    /// The complete check, for an index that was opened without it.
    pub(super) fn require_sound(&self) -> Result<()> {
        self.check_sequences()?;
        self.check_documents()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.map.bytes()
    }

    pub(super) fn dtype(&self) -> Dtype {
        self.header.dtype
    }

    pub(super) fn num_sequences(&self) -> u64 {
        self.header.num_sequences
    }

    pub(super) fn num_documents(&self) -> u64 {
        self.documents().len() as u64 - 1
    }

    /// Sum of all lengths.
    pub(super) fn num_tokens(&self) -> u64 {
        self.num_tokens
    }

    /// Size that `.bin` must have.
    pub(super) fn bin_bytes(&self) -> u64 {
        let item_bytes = self.dtype().item_bytes() as u64;
        self.num_tokens.saturating_mul(item_bytes)
    }

    /// Mode bytes, if the file has them.
    pub(super) fn modes(&self) -> Option<&[u8]> {
        self.map.bytes().get(self.layout.modes.clone()?)
    }

    /// Sequence lengths in order.
    pub(super) fn lengths(&self) -> impl ExactSizeIterator<Item = u32> {
        self.raw_lengths()
            .iter()
            .map(|&raw| u32::from_le_bytes(raw))
    }

    /// First sequence of each document, then the number of sequences.
    pub(super) fn document_indices(&self) -> impl ExactSizeIterator<Item = u64> {
        self.documents().iter().map(|&raw| u64::from_le_bytes(raw))
    }

    /// Bytes of a sequence in `.bin`.
    pub(super) fn byte_range(&self, sequence: u64) -> Result<Range<u64>> {
        let found = usize::try_from(sequence).ok().and_then(|at| {
            let start = u64::from_le_bytes(*self.pointers().get(at)?);
            let length = u64::from(u32::from_le_bytes(*self.raw_lengths().get(at)?));
            let item_bytes = self.dtype().item_bytes() as u64;
            let end = start.checked_add(length * item_bytes);
            // Always so in an index that was checked.
            let end = end.filter(|&end| end <= self.bin_bytes() && start % item_bytes == 0);
            Some(end.map(|end| start..end))
        });
        match found {
            Some(Some(bytes)) => Ok(bytes),
            Some(None) => Err(self.corrupt(format!("sequence {sequence} lies outside of .bin"))),
            None => Err(out_of_range("sequence", sequence, self.num_sequences())),
        }
    }

    /// The documents that hold these bytes of `.bin`, which must not be none.
    pub(super) fn documents_at(&self, bytes: &Range<u64>) -> Range<u64> {
        let sequence_at = |byte: u64| {
            let pointers = self.pointers();
            let after = pointers.partition_point(|&raw| u64::from_le_bytes(raw) <= byte);
            (after as u64).saturating_sub(1)
        };
        let first = self.document_of(sequence_at(bytes.start));
        let last = self.document_of(sequence_at(bytes.end.saturating_sub(1)));
        first..last + 1
    }

    /// Length of a sequence in ids.
    pub(super) fn length(&self, sequence: u64) -> Result<u32> {
        let found = usize::try_from(sequence)
            .ok()
            .and_then(|at| self.raw_lengths().get(at));
        match found {
            Some(&raw) => Ok(u32::from_le_bytes(raw)),
            None => Err(out_of_range("sequence", sequence, self.num_sequences())),
        }
    }

    /// Mode byte of a sequence; 0 in a file without modes.
    pub(super) fn mode(&self, sequence: u64) -> Result<u8> {
        if sequence >= self.num_sequences() {
            return Err(out_of_range("sequence", sequence, self.num_sequences()));
        }
        let at = usize::try_from(sequence).ok();
        let mode = self.modes().and_then(|modes| modes.get(at?));
        Ok(mode.copied().unwrap_or(0))
    }

    /// Sequences of a document.
    pub(super) fn document_sequences(&self, document: u64) -> Result<Range<u64>> {
        let found = usize::try_from(document).ok().and_then(|at| {
            let start = self.documents().get(at)?;
            let end = self.documents().get(at.checked_add(1)?)?;
            Some(u64::from_le_bytes(*start)..u64::from_le_bytes(*end))
        });
        match found {
            // Always so in an index that was checked.
            Some(range) if range.start <= range.end && range.end <= self.num_sequences() => {
                Ok(range)
            }
            Some(range) => Err(self.corrupt(format!(
                "document {document} is said to hold the sequences {range:?} of {}",
                self.num_sequences()
            ))),
            None => Err(out_of_range("document", document, self.num_documents())),
        }
    }

    /// The document that holds a sequence.
    pub(super) fn document_of(&self, sequence: u64) -> u64 {
        let starts = self.documents();
        let after = starts.partition_point(|&raw| u64::from_le_bytes(raw) <= sequence);
        (after as u64).saturating_sub(1)
    }

    fn raw_lengths(&self) -> &[[u8; 4]] {
        let bytes = self.map.bytes().get(self.layout.lengths.clone());
        bytes.unwrap_or_default().as_chunks().0
    }

    fn pointers(&self) -> &[[u8; 8]] {
        let bytes = self.map.bytes().get(self.layout.pointers.clone());
        bytes.unwrap_or_default().as_chunks().0
    }

    fn documents(&self) -> &[[u8; 8]] {
        let bytes = self.map.bytes().get(self.layout.documents.clone());
        bytes.unwrap_or_default().as_chunks().0
    }

    /// Lengths are not negative and each sequence begins where the one before ends; returns the
    /// number of ids.
    fn check_sequences(&self) -> Result<u64> {
        let item_bytes = self.dtype().item_bytes() as u64;
        let mut num_tokens = 0_u64;
        for (sequence, (&length, &pointer)) in
            self.raw_lengths().iter().zip(self.pointers()).enumerate()
        {
            let pointer = i64::from_le_bytes(pointer);
            // A saturated value is no valid pointer and no size of a file, so it is refused as well.
            let expected = num_tokens.saturating_mul(item_bytes);
            if u64::try_from(pointer) != Ok(expected) {
                return Err(self.corrupt(format!(
                    "sequence {sequence} is said to begin at byte {pointer} of .bin, but those \
                     before it end at byte {expected}{}",
                    self.pointer_hint(pointer, expected)
                )));
            }
            let length = i32::from_le_bytes(length);
            let length = u64::try_from(length).map_err(|_negative| {
                self.corrupt(format!("sequence {sequence} has the length {length}"))
            })?;
            num_tokens = num_tokens.saturating_add(length);
        }
        Ok(num_tokens)
    }

    /// Document boundaries begin at 0, never go back and end at the number of sequences.
    fn check_documents(&self) -> Result<()> {
        let mut previous = match self.documents().first() {
            Some(&raw) => i64::from_le_bytes(raw),
            None => return Err(self.corrupt("it has no document index, not even the first".into())),
        };
        if previous != 0 {
            return Err(self.corrupt(format!(
                "document 0 is said to begin at sequence {previous}, not 0"
            )));
        }
        for (document, &raw) in self.documents().iter().enumerate().skip(1) {
            let boundary = i64::from_le_bytes(raw);
            if boundary < previous {
                return Err(self.corrupt(format!(
                    "document {} is said to end at sequence {boundary}, before it begins at {previous}",
                    document - 1
                )));
            }
            previous = boundary;
        }
        if u64::try_from(previous) != Ok(self.num_sequences()) {
            return Err(self.corrupt(format!(
                "the documents end at sequence {previous} of {}; NeMo's merge_file_ leaves files \
                 so: merge the parts again with `mmfast data merge`",
                self.num_sequences()
            )));
        }
        Ok(())
    }

    /// What is known to produce such a pointer.
    fn pointer_hint(&self, pointer: i64, expected: u64) -> &'static str {
        if pointer < 0 {
            "; older NeMo writers overflow 32 bits so: write the file again"
        } else if self.dtype() == Dtype::F32
            && u64::try_from(pointer) == Ok(expected.saturating_mul(2))
        {
            "; dtype code 7 is float32 here and in megatron-core, but float64 in NeMo: write the \
             file again with code 6"
        } else {
            ""
        }
    }

    fn corrupt(&self, detail: String) -> Error {
        Error::corrupt(&self.path, detail)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::SplitMix;
    use super::*;

    const NUM_MUTATIONS: u64 = 300_000;

    /// Two documents of three sequences of 2, 0 and 3 ids.
    fn valid() -> Vec<u8> {
        let header = Header {
            dtype: Dtype::U16,
            num_sequences: 3,
            num_document_indices: 3,
        };
        let mut bytes = header.encode();
        bytes.extend([2_i32, 0, 3].iter().flat_map(|v| v.to_le_bytes()));
        bytes.extend([0_i64, 4, 4].iter().flat_map(|v| v.to_le_bytes()));
        bytes.extend([0_i64, 2, 3].iter().flat_map(|v| v.to_le_bytes()));
        bytes.extend([0, 1, 0x40]);
        bytes
    }

    /// Everything a reader may ask of an index that was accepted lies within the announced ids.
    fn require_consistent(index: &Index) {
        let mut end = 0;
        for sequence in 0..index.num_sequences() {
            let range = index.byte_range(sequence).unwrap();
            assert_eq!(range.start, end);
            end = range.end;
            index.mode(sequence).unwrap();
        }
        assert_eq!(end, index.bin_bytes());
        let mut next = 0;
        for document in 0..index.num_documents() {
            let sequences = index.document_sequences(document).unwrap();
            assert_eq!(sequences.start, next);
            next = sequences.end;
        }
        assert_eq!(next, index.num_sequences());
    }

    #[test]
    fn a_mutated_index_is_refused_or_consistent() {
        let whole = valid();
        require_consistent(&Index::check(Path::new("a.idx"), Map::of_bytes(&whole)).unwrap());
        let mut random = SplitMix(1);
        let mut num_refused = 0;
        for _ in 0..NUM_MUTATIONS {
            let mut bytes = whole.clone();
            for _ in 0..=random.below(3) {
                // Half of the mutations fall on the header, where they do most.
                let here = match random.below(2) {
                    0 => random.below(super::super::HEADER_BYTES),
                    _ => random.below(bytes.len()),
                };
                match random.below(3) {
                    0 => bytes[here] ^= 1 << random.below(8),
                    1 => bytes[here] = u8::try_from(random.below(256)).unwrap(),
                    _ => {
                        let value = [0, 1, 0xff, 0x7f, 0x80][random.below(5)];
                        let end = bytes.len().min(here + 1 + random.below(8));
                        bytes[here..end].fill(value);
                    }
                }
            }
            if random.below(8) == 0 {
                bytes.truncate(1 + random.below(whole.len()));
            }
            match Index::check(Path::new("a.idx"), Map::of_bytes(&bytes)) {
                Ok(index) => require_consistent(&index),
                Err(Error::Corrupt { .. } | Error::UnsupportedFormat { .. }) => num_refused += 1,
                Err(error) => panic!("{error}"),
            }
        }
        assert!(num_refused > NUM_MUTATIONS / 2, "{num_refused}");
    }
}
