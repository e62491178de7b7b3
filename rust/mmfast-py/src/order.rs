//! Whole-corpus plans for Python: megatron-core's order, and packing.

use mmfast_core::indexed::DocumentSource;
use mmfast_core::order::{
    MegatronConfig, MegatronIndices, SampleBounds, SampleRows, read_samples, require_divisible,
};
use mmfast_core::pack::best_fit_decreasing;
use mmfast_core::{Error, Result};
use numpy::{IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyUntypedArrayMethods};
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

/// Fills rows with samples: `bounds` are the two rows of the sample index of each, [samples, 4].
#[pyfunction]
#[pyo3(signature = (reader, document_index, bounds, *, num_extra, tokens, labels, loss_mask))]
#[expect(
    clippy::too_many_arguments,
    reason = "indices and the arrays to fill, the latter by keyword"
)]
pub(crate) fn megatron_samples<'py>(
    py: Python<'py>,
    reader: &DatasetReader,
    document_index: &Bound<'py, PyArray1<i32>>,
    bounds: &Bound<'py, PyArray2<i32>>,
    num_extra: u32,
    tokens: &Bound<'py, PyArray2<i64>>,
    labels: &Bound<'py, PyArray2<i64>>,
    loss_mask: &Bound<'py, PyArray2<f32>>,
) -> PyResult<()> {
    let view = &reader.view;
    let document_index = document_index.try_readonly()?;
    let document_index = document_index.as_slice()?;
    let bounds = bounds.try_readonly()?;
    let (bounds, _) = bounds.as_slice()?.as_chunks::<4>();
    let shape = [bounds.len(), tokens.shape().get(1).copied().unwrap_or(0)];
    if [tokens.shape(), labels.shape(), loss_mask.shape()] != [shape; 3] || shape.contains(&0) {
        return Err(crate::error::to_py(Error::argument(format!(
            "{} samples need arrays of as many rows, all of one length",
            bounds.len()
        ))));
    }
    let (mut tokens, mut labels) = (tokens.try_readwrite()?, labels.try_readwrite()?);
    let mut loss_mask = loss_mask.try_readwrite()?;
    let rows = SampleRows {
        length: shape[1],
        tokens: tokens.as_slice_mut()?,
        labels: labels.as_slice_mut()?,
        loss_mask: loss_mask.as_slice_mut()?,
    };
    run_detached(py, || {
        let samples = bounds
            .iter()
            .map(|[a, b, c, d]| -> SampleBounds { [(*a, *b), (*c, *d)] });
        let sequence_of = |nth| view.nth_sequence(nth);
        read_samples(view, sequence_of, document_index, samples, num_extra, rows)
    })
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
