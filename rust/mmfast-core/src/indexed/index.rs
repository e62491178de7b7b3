//! An `.idx` in memory, every entry of it checked when it is opened.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::header::{Dtype, Header, Layout};
use super::map::Map;
use super::media::MEDIA_BIT;
use super::soundness::{Reading, contiguous_tokens, loose_sequences, unwrapped, wrapped_tokens};
use super::source::out_of_range;
use crate::error::{Error, Result};

/// The arrays of an index. They lie unaligned in the file, so entries are loaded byte by byte.
#[derive(Debug)]
pub(super) struct Index {
    path: PathBuf,
    header: Header,
    layout: Layout,
    map: Map,
    reading: Reading,
}

impl Index {
    /// Checks an index completely. `bin_bytes` is the size of its `.bin`, by which variants of the
    /// format are told apart; whether it is the right one is for the caller to compare.
    pub(super) fn open(path: &Path, map: Map, bin_bytes: u64) -> Result<Self> {
        let mut index = Self::parse(path, map)?;
        index.reading = index.read_all(bin_bytes)?;
        Ok(index)
    }

    /// Checks header and ends only, in constant time, unless they do not go with the size of `.bin`. An
    /// entry that is wrong is an error when it leads out of a file, and else whatever it says.
    pub(super) fn open_unchecked(path: &Path, map: Map, bin_bytes: u64) -> Result<Self> {
        let mut index = Self::parse(path, map)?;
        index.reading = match index.read_ends(bin_bytes) {
            Some(reading) => reading,
            None => index.read_all(bin_bytes)?,
        };
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
            reading: Reading::default(),
        })
    }

    /// The complete check, for an index that was opened without it.
    pub(super) fn require_sound(&self) -> Result<()> {
        if self.read_all(self.bin_bytes())? != self.reading {
            return Err(self.corrupt("its ends do not go with what lies between them".into()));
        }
        Ok(())
    }

    /// What is not as megatron-core writes it, in sentences.
    pub(super) fn findings(&self) -> Vec<String> {
        self.reading.findings()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.map.bytes()
    }

    pub(super) fn dtype(&self) -> Dtype {
        self.reading.dtype.unwrap_or(self.header.dtype)
    }

    pub(super) fn num_sequences(&self) -> u64 {
        self.header.num_sequences
    }

    pub(super) fn num_documents(&self) -> u64 {
        (self.documents().len() as u64).saturating_sub(1) + self.reading.num_loose
    }

    /// Sum of all lengths.
    pub(super) fn num_tokens(&self) -> u64 {
        self.reading.num_tokens
    }

    /// Size that `.bin` must have.
    pub(super) fn bin_bytes(&self) -> u64 {
        let item_bytes = self.dtype().item_bytes() as u64;
        self.num_tokens().saturating_mul(item_bytes)
    }

    /// Mode bytes, if the file has them.
    pub(super) fn modes(&self) -> Option<&[u8]> {
        self.map.bytes().get(self.layout.modes.clone()?)
    }

    /// Whether any sequence holds placeholders for media.
    pub(super) fn has_media(&self) -> bool {
        let modes = self.modes().unwrap_or_default();
        // Without an early exit this is a few wide instructions.
        modes.iter().fold(0, |all, mode| all | mode) & MEDIA_BIT != 0
    }

    /// Sequence lengths in order.
    pub(super) fn lengths(&self) -> impl ExactSizeIterator<Item = u32> {
        self.raw_lengths()
            .iter()
            .map(|&raw| u32::from_le_bytes(raw))
    }

    /// First sequence of each document, then the number of sequences.
    pub(super) fn document_indices(&self) -> impl ExactSizeIterator<Item = u64> {
        let (boundaries, num_listed) = (self.documents(), self.documents().len());
        let first_loose = self.num_sequences() - self.reading.num_loose;
        let num_boundaries = num_listed + usize::try_from(self.reading.num_loose).unwrap_or(0);
        (0..num_boundaries).map(move |at| match boundaries.get(at) {
            Some(&raw) => u64::from_le_bytes(raw),
            None => first_loose + 1 + (at - num_listed) as u64,
        })
    }

    /// Bytes of a sequence in `.bin`.
    pub(super) fn byte_range(&self, sequence: u64) -> Result<Range<u64>> {
        let found = usize::try_from(sequence).ok().and_then(|at| {
            let raw = u64::from_le_bytes(*self.pointers().get(at)?);
            let start = unwrapped(raw, sequence, &self.reading.wraps);
            let length = u64::from(u32::from_le_bytes(*self.raw_lengths().get(at)?));
            let item_bytes = self.dtype().item_bytes() as u64;
            let end = start.checked_add(length * item_bytes);
            // Always so in an index that was checked.
            let end =
                end.filter(|&end| end <= self.bin_bytes() && start.is_multiple_of(item_bytes));
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
            let starts_before = |sequence: u64| {
                let bytes = self.byte_range(sequence);
                bytes.is_ok_and(|bytes| bytes.start <= byte)
            };
            partition_point(self.num_sequences(), starts_before).saturating_sub(1)
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
            let start = *self.documents().get(at)?;
            let end = *self.documents().get(at.checked_add(1)?)?;
            Some(u64::from_le_bytes(start)..u64::from_le_bytes(end))
        });
        let found = found.or_else(|| self.loose_document(document));
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

    /// A document that no boundary tells of: a sequence past the last one.
    fn loose_document(&self, document: u64) -> Option<Range<u64>> {
        let num_left = self.num_documents().checked_sub(document)?;
        let is_loose = (1..=self.reading.num_loose).contains(&num_left);
        let sequence = self.num_sequences().checked_sub(num_left)?;
        is_loose.then_some(sequence..sequence + 1)
    }

    /// The document that holds a sequence.
    pub(super) fn document_of(&self, sequence: u64) -> u64 {
        let num_behind = self.num_sequences().saturating_sub(sequence);
        if num_behind <= self.reading.num_loose {
            return self.num_documents().saturating_sub(num_behind);
        }
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

    /// Reads the arrays as megatron-core would, or as a known variant if they do not go together so.
    fn read_all(&self, bin_bytes: u64) -> Result<Reading> {
        let (lengths, pointers) = (self.raw_lengths(), self.pointers());
        let fits = |num_tokens: u64, dtype: Dtype| {
            num_tokens.checked_mul(dtype.item_bytes() as u64) == Some(bin_bytes)
        };
        let contiguous = self.candidates().find_map(|(dtype, variant)| {
            let found = contiguous_tokens(lengths, pointers, dtype.item_bytes());
            let num_tokens = found.filter(|&num_tokens| fits(num_tokens, dtype))?;
            Some((num_tokens, variant, Vec::new()))
        });
        let wrapped = || {
            self.candidates().find_map(|(dtype, variant)| {
                let found = wrapped_tokens(lengths, pointers, dtype.item_bytes());
                let (num_tokens, wraps) = found.filter(|found| fits(found.0, dtype))?;
                Some((num_tokens, variant, wraps))
            })
        };
        let (num_tokens, dtype, wraps) = match contiguous.or_else(wrapped) {
            Some(found) => found,
            None => (self.check_sequences()?, None, Vec::new()),
        };
        let found = loose_sequences(self.documents(), self.num_sequences());
        let num_loose = found.ok_or_else(|| self.wrong_documents())?;
        Ok(Reading {
            num_tokens,
            dtype,
            num_loose,
            wraps,
        })
    }

    /// What the ends of the arrays say, if that goes with the size of `.bin`.
    fn read_ends(&self, bin_bytes: u64) -> Option<Reading> {
        let ends = self.documents().first().zip(self.documents().last());
        let (first, last) = ends.map(|(&first, &last)| (first, u64::from_le_bytes(last)))?;
        let num_loose = self.num_sequences().checked_sub(last)?;
        if u64::from_le_bytes(first) != 0 {
            return None;
        }
        let last = self.pointers().last().zip(self.raw_lengths().last());
        let (pointer, length) = last.map_or((0, 0), |(&pointer, &length)| {
            let length = u64::from(u32::from_le_bytes(length));
            (u64::from_le_bytes(pointer), length)
        });
        self.candidates().find_map(|(dtype, variant)| {
            let item_bytes = dtype.item_bytes() as u64;
            let is_all = pointer.checked_add(length * item_bytes) == Some(bin_bytes);
            let num_tokens = (pointer / item_bytes).saturating_add(length);
            is_all.then(|| Reading {
                num_tokens,
                dtype: variant,
                num_loose,
                wraps: Vec::new(),
            })
        })
    }

    /// The dtypes that the header's code can mean, and how the second of them is recorded.
    fn candidates(&self) -> impl Iterator<Item = (Dtype, Option<Dtype>)> {
        let named = self.header.dtype;
        let other = (named == Dtype::F32).then_some((Dtype::F64, Some(Dtype::F64)));
        std::iter::once((named, None)).chain(other)
    }

    /// Number of ids, or the first sequence that has a negative length or does not begin where the one
    /// before ends.
    fn check_sequences(&self) -> Result<u64> {
        let item_bytes = self.header.dtype.item_bytes() as u64;
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

    /// What is wrong with the document boundaries.
    fn wrong_documents(&self) -> Error {
        let boundaries = self.documents().iter().map(|&raw| i64::from_le_bytes(raw));
        let mut previous = 0;
        for (document, boundary) in (0_u64..).zip(boundaries) {
            if document == 0 && boundary != 0 {
                return self.corrupt(format!(
                    "document 0 is said to begin at sequence {boundary}, not 0"
                ));
            }
            if boundary < previous {
                return self.corrupt(format!(
                    "document {} is said to end at sequence {boundary}, before it begins at {previous}",
                    document - 1
                ));
            }
            previous = boundary;
        }
        match self.documents() {
            [] => self.corrupt("it has no document index, not even the first".into()),
            _ => self.corrupt(format!(
                "the documents end at sequence {previous} of {}",
                self.num_sequences()
            )),
        }
    }

    /// What is known to produce such a pointer.
    fn pointer_hint(&self, pointer: i64, expected: u64) -> &'static str {
        if pointer < 0 {
            "; older NeMo writers overflow 32 bits so, but lengths and .bin do not go together here"
        } else if self.header.dtype == Dtype::F32
            && u64::try_from(pointer) == Ok(expected.saturating_mul(2))
        {
            "; dtype code 7 is float64 in NeMo, but then .bin has another size"
        } else {
            ""
        }
    }

    fn corrupt(&self, detail: String) -> Error {
        Error::corrupt(&self.path, detail)
    }
}

/// The first of `0..len` for which `is_before` no longer holds; it must hold for those before it.
fn partition_point(len: u64, is_before: impl Fn(u64) -> bool) -> u64 {
    let (mut low, mut high) = (0, len);
    while low < high {
        let middle = low + (high - low) / 2;
        if is_before(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::super::testing::SplitMix;
    use super::*;

    const NUM_MUTATIONS: u64 = 300_000;
    /// Size of the `.bin` that goes with [`valid`].
    const BIN_BYTES: u64 = 10;

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
        let open = |bytes: &[u8]| Index::open(Path::new("a.idx"), Map::of_bytes(bytes), BIN_BYTES);
        require_consistent(&open(&whole).unwrap());
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
            match open(&bytes) {
                Ok(index) => require_consistent(&index),
                Err(Error::Corrupt { .. } | Error::UnsupportedFormat { .. }) => num_refused += 1,
                Err(error) => panic!("{error}"),
            }
        }
        assert!(num_refused > NUM_MUTATIONS / 2, "{num_refused}");
    }
}
