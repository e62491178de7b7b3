//! Sampling for Python: rows of torch's tensors, seen as arrays, go to the core without a copy.

use mmfast_core::Error;
use mmfast_core::sample::{
    Bf16, Bitmaps, Drawn, F16, F32, Format, Inputs, Masks, Parameters, draw,
};
use numpy::ndarray::Axis;
use numpy::{
    Element, IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2,
};
use pyo3::prelude::*;

use crate::error::to_py;
use crate::gil::run_detached;

/// Tokens counted from the range's start, kept ids, log2-probabilities (26 fractional bits), status. Tokens
/// and log2-probabilities have the draws of row after row.
type Found<'py> = (
    Bound<'py, PyArray1<i64>>,
    Bound<'py, PyArray1<i64>>,
    Bound<'py, PyArray1<i64>>,
    Bound<'py, PyArray1<u8>>,
);

/// Draws ids from rows. Arrays of logits are [B, N] with contiguous rows: float32, or uint16 that holds
/// `float16` or `bfloat16`. `ranges` is [B, 2], `mask` and the words of `bits` and `history` have B rows or one.
#[pyfunction]
#[pyo3(signature = (conditions, base, *, number_format, first_id, ranges, mask, bits, history, guidance,
    bits_per_logit, filter_bits_per_logit, greedy, top_k, top_p, min_p, contrastive_k, contrastive_log_alpha,
    repetition_penalty, offsets, rules, seeds, steps, positions, num_draws, num_threads))]
#[expect(
    clippy::needless_pass_by_value,
    clippy::too_many_arguments,
    reason = "the fields of one call, as Python passes them"
)]
pub(crate) fn draw_rows<'py>(
    py: Python<'py>,
    conditions: Vec<Bound<'py, PyAny>>,
    base: Option<Bound<'py, PyAny>>,
    number_format: &str,
    first_id: u32,
    ranges: Option<PyReadonlyArray1<'py, i64>>,
    mask: Option<PyReadonlyArray2<'py, bool>>,
    bits: Option<PyReadonlyArray2<'py, u32>>,
    history: Option<PyReadonlyArray2<'py, u32>>,
    guidance: PyReadonlyArray1<'py, f32>,
    bits_per_logit: PyReadonlyArray1<'py, f32>,
    filter_bits_per_logit: PyReadonlyArray1<'py, f32>,
    greedy: PyReadonlyArray1<'py, bool>,
    top_k: PyReadonlyArray1<'py, i64>,
    top_p: PyReadonlyArray1<'py, i64>,
    min_p: PyReadonlyArray1<'py, i64>,
    contrastive_k: PyReadonlyArray1<'py, i64>,
    contrastive_log_alpha: PyReadonlyArray1<'py, f32>,
    repetition_penalty: PyReadonlyArray1<'py, f32>,
    offsets: Option<PyReadonlyArray1<'py, f32>>,
    rules: PyReadonlyArray1<'py, i64>,
    seeds: PyReadonlyArray1<'py, i64>,
    steps: PyReadonlyArray1<'py, i64>,
    positions: Option<PyReadonlyArray1<'py, i64>>,
    num_draws: usize,
    num_threads: usize,
) -> PyResult<Found<'py>> {
    let parameters = Parameters {
        guidance: guidance.as_slice()?,
        bits_per_logit: bits_per_logit.as_slice()?,
        filter_bits_per_logit: filter_bits_per_logit.as_slice()?,
        greedy: greedy.as_slice()?,
        top_k: top_k.as_slice()?,
        top_p: top_p.as_slice()?,
        min_p: min_p.as_slice()?,
        contrastive_k: contrastive_k.as_slice()?,
        contrastive_log_alpha: contrastive_log_alpha.as_slice()?,
        repetition_penalty: repetition_penalty.as_slice()?,
        rules: rules.as_slice()?,
        seeds: seeds.as_slice()?,
        steps: steps.as_slice()?,
        positions: positions.as_ref().map(|p| p.as_slice()).transpose()?,
        offsets: offsets.as_ref().map(|o| o.as_slice()).transpose()?,
    };
    let mask_rows = mask.as_ref().map(rows).transpose()?;
    let bit_rows = bits.as_ref().map(rows).transpose()?;
    let history_rows = history.as_ref().map(rows).transpose()?;
    let first_id = first_id as usize;
    let bitmaps = |rows| Bitmaps { rows, first_id };
    let masks = match (&ranges, &mask_rows, &bit_rows) {
        (None, None, None) => Masks::All,
        (Some(ranges), None, None) => Masks::Ranges(ranges.as_slice()?),
        (None, Some(rows), None) => Masks::Marked(rows),
        (None, None, Some(rows)) => Masks::Bits(bitmaps(rows)),
        _ => {
            return Err(to_py(Error::argument(
                "only one of ranges, mask and bits can say which ids exist",
            )));
        }
    };
    let call = Call {
        conditions: &conditions,
        base: base.as_ref(),
        masks,
        history: history_rows.as_deref().map(bitmaps),
        parameters: &parameters,
        num_draws,
        num_threads,
    };
    let drawn = match number_format {
        "float32" => call.draw_from::<F32>(py),
        "float16" => call.draw_from::<F16>(py),
        "bfloat16" => call.draw_from::<Bf16>(py),
        other => Err(to_py(Error::argument(format!(
            "logits in {other} are not read here"
        )))),
    }?;
    let tokens: Vec<i64> = drawn.draws.iter().map(|draw| draw.token.into()).collect();
    let logs: Vec<i64> = drawn
        .draws
        .iter()
        .map(|draw| draw.log2_probability)
        .collect();
    let kept: Vec<i64> = drawn.rows.iter().map(|row| row.num_kept.into()).collect();
    let status: Vec<u8> = drawn.rows.iter().map(|row| row.status).collect();
    Ok((
        tokens.into_pyarray(py),
        kept.into_pyarray(py),
        logs.into_pyarray(py),
        status.into_pyarray(py),
    ))
}

/// A call whose number format is still to be told apart.
struct Call<'a, 'py> {
    conditions: &'a [Bound<'py, PyAny>],
    base: Option<&'a Bound<'py, PyAny>>,
    masks: Masks<'a>,
    history: Option<Bitmaps<'a>>,
    parameters: &'a Parameters<'a>,
    num_draws: usize,
    num_threads: usize,
}

impl Call<'_, '_> {
    fn draw_from<F: Format>(&self, py: Python<'_>) -> PyResult<Drawn>
    where
        F::Bits: Element,
    {
        let conditions = self
            .conditions
            .iter()
            .map(read::<F>)
            .collect::<PyResult<Vec<_>>>()?;
        let base = self.base.map(read::<F>).transpose()?;
        let mut condition_rows = Vec::new();
        for stream in &conditions {
            condition_rows.extend(rows(stream)?);
        }
        let base_rows = base.as_ref().map(rows).transpose()?;
        let inputs = Inputs {
            conditions: &condition_rows,
            base: base_rows.as_deref(),
            masks: self.masks,
            history: self.history,
        };
        let (parameters, num_draws, num_threads) =
            (self.parameters, self.num_draws, self.num_threads);
        run_detached(py, || {
            draw::<F>(&inputs, parameters, num_draws, num_threads)
        })
    }
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
