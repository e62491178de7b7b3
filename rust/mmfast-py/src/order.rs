//! Whole-corpus plans for Python: megatron-core's order, and packing.

use mmfast_core::indexed::DocumentSource;
use mmfast_core::order::{MegatronConfig, MegatronIndices, require_divisible};
use mmfast_core::pack::best_fit_decreasing;
use mmfast_core::{Error, Result};
use numpy::{IntoPyArray, PyArray1, PyArrayMethods};
use pyo3::prelude::*;

use crate::dataset::DatasetReader;
use crate::gil::run_detached;

/// Document, sample (pairs in a row) and shuffle index, epochs, separate final epoch.
type MegatronArrays<'py> = (
    Bound<'py, PyArray1<i32>>,
    Bound<'py, PyArray1<i32>>,
    Bound<'py, PyArray1<u32>>,
    u64,
    bool,
);

/// megatron-core's indices over the sequences `start..stop` of a dataset.
#[pyfunction]
#[pyo3(signature = (reader, *, start, stop, sequence_length, num_samples, seed, extra_token, drop_last))]
#[expect(
    clippy::too_many_arguments,
    reason = "the fields of one configuration, all passed by keyword"
)]
pub(crate) fn megatron_indices<'py>(
    py: Python<'py>,
    reader: &DatasetReader,
    start: u64,
    stop: u64,
    sequence_length: u32,
    num_samples: Option<u64>,
    seed: u32,
    extra_token: bool,
    drop_last: bool,
) -> PyResult<MegatronArrays<'py>> {
    let view = &reader.view;
    let config = MegatronConfig {
        sequence_length,
        num_samples,
        seed,
        extra_token,
        drop_last,
    };
    let indices = run_detached(py, || {
        let first = u32::try_from(start).unwrap_or(u32::MAX);
        let lengths: Result<Vec<u32>> = (start..stop)
            .map(|nth| {
                let sequence = view.nth_sequence(nth)?;
                require_divisible(view, sequence..sequence + 1)?;
                view.sequence_length(sequence)
            })
            .collect();
        MegatronIndices::new(&lengths?, first, &config)
    })?;
    Ok((
        indices.document_index.into_pyarray(py),
        indices.sample_index.into_pyarray(py),
        indices.shuffle_index.into_pyarray(py),
        indices.num_epochs,
        indices.separate_final_epoch,
    ))
}

/// Items by bin: bin b holds `items[offsets[b]..offsets[b + 1]]`. Returns offsets and items.
#[pyfunction]
#[expect(clippy::type_complexity, reason = "mirrors the stub's tuple")]
pub(crate) fn pack_lengths<'py>(
    py: Python<'py>,
    lengths: &Bound<'py, PyArray1<u32>>,
    capacity: u32,
) -> PyResult<(Bound<'py, PyArray1<u32>>, Bound<'py, PyArray1<u32>>)> {
    let lengths = lengths.try_readonly()?;
    let lengths = lengths.as_slice()?;
    let (offsets, items) = run_detached(py, || {
        if capacity == 0 {
            return Err(Error::argument("a bin holds at least 1 id, found 0"));
        }
        Ok(best_fit_decreasing(lengths, capacity)?.into_parts())
    })?;
    Ok((offsets.into_pyarray(py), items.into_pyarray(py)))
}
