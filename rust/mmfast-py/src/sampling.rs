//! Sampling for Python: rows of torch's tensors, seen as arrays, go to the core without a copy.

use mmfast_core::Error;
use mmfast_core::sample::{Bf16, F16, F32, Format, Parameters, RowDraw, draw};
use numpy::ndarray::Axis;
use numpy::{
    Element, IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2,
};
use pyo3::prelude::*;

use crate::error::to_py;
use crate::gil::run_detached;

/// Tokens counted from the range's start, kept ids, log2-probabilities (26 fractional bits), status.
type Drawn<'py> = (
    Bound<'py, PyArray1<i64>>,
    Bound<'py, PyArray1<i64>>,
    Bound<'py, PyArray1<i64>>,
    Bound<'py, PyArray1<u8>>,
);

/// Draws one id a row. Arrays of logits are [B, N] with contiguous rows: float32, or uint16 that holds
/// `float16` or `bfloat16`.
#[pyfunction]
#[pyo3(signature = (conditions, base, mask, *, number_format, guidance, bits_per_logit, greedy, top_k, top_p,
    min_p, seeds, steps, keep_ties, min_p_first, num_threads))]
#[expect(
    clippy::needless_pass_by_value,
    clippy::too_many_arguments,
    reason = "the fields of one call, as Python passes them"
)]
pub(crate) fn draw_rows<'py>(
    py: Python<'py>,
    conditions: Vec<Bound<'py, PyAny>>,
    base: Option<Bound<'py, PyAny>>,
    mask: Option<PyReadonlyArray2<'py, bool>>,
    number_format: &str,
    guidance: PyReadonlyArray1<'py, f32>,
    bits_per_logit: PyReadonlyArray1<'py, f32>,
    greedy: PyReadonlyArray1<'py, bool>,
    top_k: PyReadonlyArray1<'py, i64>,
    top_p: PyReadonlyArray1<'py, i64>,
    min_p: PyReadonlyArray1<'py, i64>,
    seeds: PyReadonlyArray1<'py, i64>,
    steps: PyReadonlyArray1<'py, i64>,
    keep_ties: bool,
    min_p_first: bool,
    num_threads: usize,
) -> PyResult<Drawn<'py>> {
    let parameters = Parameters {
        guidance: guidance.as_slice()?,
        bits_per_logit: bits_per_logit.as_slice()?,
        greedy: greedy.as_slice()?,
        top_k: top_k.as_slice()?,
        top_p: top_p.as_slice()?,
        min_p: min_p.as_slice()?,
        seeds: seeds.as_slice()?,
        steps: steps.as_slice()?,
        keep_ties,
        min_p_first,
    };
    let masks = mask.as_ref().map(rows).transpose()?;
    let masks = masks.as_deref();
    let drawn = match number_format {
        "float32" => draw_from::<F32>(
            py,
            &conditions,
            base.as_ref(),
            masks,
            &parameters,
            num_threads,
        ),
        "float16" => draw_from::<F16>(
            py,
            &conditions,
            base.as_ref(),
            masks,
            &parameters,
            num_threads,
        ),
        "bfloat16" => draw_from::<Bf16>(
            py,
            &conditions,
            base.as_ref(),
            masks,
            &parameters,
            num_threads,
        ),
        other => Err(to_py(Error::argument(format!(
            "logits in {other} are not read here"
        )))),
    }?;
    let numbers = |value: fn(&RowDraw) -> i64| {
        let values: Vec<i64> = drawn.iter().map(value).collect();
        values.into_pyarray(py)
    };
    let status: Vec<u8> = drawn.iter().map(|row| row.status).collect();
    Ok((
        numbers(|row| row.token.into()),
        numbers(|row| row.num_kept.into()),
        numbers(|row| row.log2_probability),
        status.into_pyarray(py),
    ))
}

fn draw_from<F: Format>(
    py: Python<'_>,
    conditions: &[Bound<'_, PyAny>],
    base: Option<&Bound<'_, PyAny>>,
    masks: Option<&[&[bool]]>,
    parameters: &Parameters<'_>,
    num_threads: usize,
) -> PyResult<Vec<RowDraw>>
where
    F::Bits: Element,
{
    let conditions = conditions
        .iter()
        .map(read::<F>)
        .collect::<PyResult<Vec<_>>>()?;
    let base = base.map(read::<F>).transpose()?;
    let mut condition_rows = Vec::new();
    for stream in &conditions {
        condition_rows.extend(rows(stream)?);
    }
    let base_rows = base.as_ref().map(rows).transpose()?;
    run_detached(py, || {
        draw::<F>(
            &condition_rows,
            base_rows.as_deref(),
            masks,
            parameters,
            num_threads,
        )
    })
}

fn read<'py, F: Format>(array: &Bound<'py, PyAny>) -> PyResult<PyReadonlyArray2<'py, F::Bits>>
where
    F::Bits: Element,
{
    Ok(array.cast::<PyArray2<F::Bits>>()?.try_readonly()?)
}

/// The rows of an array whose rows are contiguous.
fn rows<'a, T: Element>(array: &'a PyReadonlyArray2<'_, T>) -> PyResult<Vec<&'a [T]>> {
    let num_rows = array.as_array().nrows();
    let row = |row| array.as_array().index_axis_move(Axis(0), row).to_slice();
    let rows = (0..num_rows).map(row).collect::<Option<Vec<_>>>();
    rows.ok_or_else(|| to_py(Error::argument("the ids of a row must lie side by side")))
}
