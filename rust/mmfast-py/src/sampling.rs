//! Sampling for Python: torch's tensors go to the core where they lie, without a copy of logits.

use mmfast_core::Error;
use mmfast_core::sample::{
    Bf16, Bitmaps, Drawn, F16, F32, Format, Inputs, Masks, Parameters, draw,
};
use numpy::{IntoPyArray, PyArray1, PyArrayDyn, PyArrayMethods};
use pyo3::prelude::*;

use crate::dlpack::{NumberType, View};
use crate::error::to_py;
use crate::gil::run_detached;

/// Tokens, their log-probabilities, kept ids [B], status [B]; the first two [B, D], or [B] for single draws.
type Found<'py> = (
    Bound<'py, PyArrayDyn<i64>>,
    Bound<'py, PyArrayDyn<f32>>,
    Bound<'py, PyArray1<i64>>,
    Bound<'py, PyArray1<u8>>,
);

/// `mmfast.sampling.inputs.DrawInputs`
#[derive(FromPyObject)]
pub(crate) struct DrawInputs<'py> {
    conditions: Vec<Bound<'py, PyAny>>,
    unconditional: Option<Bound<'py, PyAny>>,
    params: SamplingParams<'py>,
    seeds: Bound<'py, PyAny>,
    steps: Bound<'py, PyAny>,
    positions: Option<Bound<'py, PyAny>>,
    num_draws: usize,
    first_id: i64,
    ranges: Option<Bound<'py, PyAny>>,
    mask: Option<Bound<'py, PyAny>>,
    bits: Option<Bits<'py>>,
    history: Option<Bits<'py>>,
    offsets: Option<Bound<'py, PyAny>>,
}

/// `mmfast.sampling.params.SamplingParams`
#[derive(FromPyObject)]
struct SamplingParams<'py> {
    guidance: Bound<'py, PyAny>,
    bits_per_logit: Bound<'py, PyAny>,
    filter_bits_per_logit: Bound<'py, PyAny>,
    greedy: Bound<'py, PyAny>,
    top_k: Bound<'py, PyAny>,
    top_p: Bound<'py, PyAny>,
    min_p: Bound<'py, PyAny>,
    contrastive_k: Bound<'py, PyAny>,
    contrastive_log_alpha: Bound<'py, PyAny>,
    repetition_penalty: Bound<'py, PyAny>,
    rules: Bound<'py, PyAny>,
}

/// `mmfast.sampling.bitmap.Bits`
#[derive(FromPyObject)]
struct Bits<'py> {
    words: Bound<'py, PyAny>,
    first_id: usize,
}

/// Draws ids from rows; `None` if the streams do not have one dtype and rows of numbers side by side.
///
/// Words of bits are int32.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "as Python passes it")]
pub(crate) fn draw_rows<'py>(
    py: Python<'py>,
    inputs: DrawInputs<'py>,
    num_threads: usize,
    is_single: bool,
) -> PyResult<Option<Found<'py>>> {
    let params = &inputs.params;
    let greedy: Vec<u8> = numbers(&params.greedy, "greedy", NumberType::BOOL)?;
    let greedy: Vec<bool> = greedy.into_iter().map(|marked| marked != 0).collect();
    let integers = |tensor, name| numbers::<i64>(tensor, name, NumberType::INT64);
    let floats = |tensor, name| numbers::<f32>(tensor, name, NumberType::FLOAT32);
    let positions = inputs.positions.as_ref();
    let positions = positions.map(|p| integers(p, "positions")).transpose()?;
    let offsets = inputs.offsets.as_ref();
    let offsets = offsets.map(|o| floats(o, "offsets")).transpose()?;
    let ranges = inputs.ranges.as_ref();
    let ranges = ranges.map(|r| integers(r, "ranges")).transpose()?;
    let parameters = Parameters {
        guidance: &floats(&params.guidance, "guidance")?,
        bits_per_logit: &floats(&params.bits_per_logit, "bits_per_logit")?,
        filter_bits_per_logit: &floats(&params.filter_bits_per_logit, "filter_bits_per_logit")?,
        greedy: &greedy,
        top_k: &integers(&params.top_k, "top_k")?,
        top_p: &integers(&params.top_p, "top_p")?,
        min_p: &integers(&params.min_p, "min_p")?,
        contrastive_k: &integers(&params.contrastive_k, "contrastive_k")?,
        contrastive_log_alpha: &floats(&params.contrastive_log_alpha, "contrastive_log_alpha")?,
        repetition_penalty: &floats(&params.repetition_penalty, "repetition_penalty")?,
        rules: &integers(&params.rules, "rules")?,
        seeds: &integers(&inputs.seeds, "seeds")?,
        steps: &integers(&inputs.steps, "steps")?,
        positions: positions.as_deref(),
        offsets: offsets.as_deref(),
    };
    let mask = inputs.mask.as_ref();
    let mask_rows = mask.map(|mask| named_rows::<u8>(mask, "mask", NumberType::BOOL));
    let mask_rows = mask_rows.transpose()?;
    let bit_rows = inputs.bits.as_ref().map(Bits::rows).transpose()?;
    let history_rows = inputs.history.as_ref().map(Bits::rows).transpose()?;
    let masks = match (&ranges, &mask_rows, &bit_rows) {
        (None, None, None) => Masks::All,
        (Some(ranges), None, None) => Masks::Ranges(ranges),
        (None, Some(rows), None) => Masks::Marked(rows),
        (None, None, Some((rows, first_id))) => Masks::Bits(bitmaps(rows, *first_id)),
        _ => {
            return Err(to_py(Error::argument(
                "only one of ranges, mask and bits can say which ids exist",
            )));
        }
    };
    let history = history_rows.as_ref();
    let call = Call {
        inputs: &inputs,
        masks,
        history: history.map(|(rows, first_id)| bitmaps(rows, *first_id)),
        parameters: &parameters,
        num_threads,
    };
    let number_type = inputs.conditions.first().and_then(View::of);
    let drawn = match number_type.map(|view| view.number_type) {
        Some(number_type @ NumberType::FLOAT16) => call.draw_from::<F16>(py, number_type),
        Some(number_type @ NumberType::BFLOAT16) => call.draw_from::<Bf16>(py, number_type),
        _ => call.draw_from::<F32>(py, NumberType::FLOAT32),
    }?;
    let Some(Drawn { draws, rows }) = drawn else {
        return Ok(None);
    };
    let tokens = draws
        .iter()
        .map(|draw| inputs.first_id + i64::from(draw.token));
    let tokens: Vec<i64> = tokens.collect();
    let draws_of_rows = draws.chunks(inputs.num_draws.max(1)).zip(&rows);
    let logprobs = draws_of_rows.flat_map(|(draws, row)| {
        let row = *row;
        draws.iter().map(move |draw| draw.log_probability(row))
    });
    let logprobs: Vec<f32> = logprobs.collect();
    let kept: Vec<i64> = rows.iter().map(|row| row.num_kept.into()).collect();
    let status: Vec<u8> = rows.iter().map(|row| row.status).collect();
    let shape = [rows.len(), inputs.num_draws];
    let shape = if is_single { &shape[..1] } else { &shape };
    Ok(Some((
        tokens.into_pyarray(py).reshape(shape)?,
        logprobs.into_pyarray(py).reshape(shape)?,
        kept.into_pyarray(py),
        status.into_pyarray(py),
    )))
}

/// A call whose number format is still to be told apart.
struct Call<'a, 'py> {
    inputs: &'a DrawInputs<'py>,
    masks: Masks<'a>,
    history: Option<Bitmaps<'a>>,
    parameters: &'a Parameters<'a>,
    num_threads: usize,
}

impl Call<'_, '_> {
    /// `None` if streams are no rows of that format.
    fn draw_from<F: Format>(
        &self,
        py: Python<'_>,
        number_type: NumberType,
    ) -> PyResult<Option<Drawn>> {
        let rows_of = |stream| rows::<F::Bits>(stream, number_type);
        let mut conditions = Vec::new();
        for stream in &self.inputs.conditions {
            match rows_of(stream) {
                Some(rows) => conditions.extend(rows),
                None => return Ok(None),
            }
        }
        let base = self.inputs.unconditional.as_ref().map(rows_of);
        let base = match base {
            Some(None) => return Ok(None),
            Some(rows) => rows,
            None => None,
        };
        let inputs = Inputs {
            conditions: &conditions,
            base: base.as_deref(),
            masks: self.masks,
            history: self.history,
        };
        let (parameters, num_draws) = (self.parameters, self.inputs.num_draws);
        let num_threads = self.num_threads;
        let drawn = run_detached(py, || {
            draw::<F>(&inputs, parameters, num_draws, num_threads)
        });
        drawn.map(Some)
    }
}

impl Bits<'_> {
    fn rows(&self) -> PyResult<(Vec<&[u32]>, usize)> {
        let rows = named_rows(&self.words, "a bitmap", NumberType::INT32)?;
        Ok((rows, self.first_id))
    }
}

fn bitmaps<'a>(rows: &'a [&'a [u32]], first_id: usize) -> Bitmaps<'a> {
    Bitmaps { rows, first_id }
}

/// The rows of a tensor of two dimensions whose numbers have the size of `T`; `None` if it has none such.
#[expect(unsafe_code, reason = "torch's memory")]
fn rows<'a, T>(tensor: &'a Bound<'_, PyAny>, number_type: NumberType) -> Option<Vec<&'a [T]>> {
    let view = View::of(tensor).filter(|view| view.number_type == number_type);
    // SAFETY: of that type, whose bits are what T takes. As with torch's own operators, which run without the
    // GIL as well, nobody may write to the logits or resize them until the call returns.
    view.and_then(|view| unsafe { view.rows() })
}

fn named_rows<'a, T>(
    tensor: &'a Bound<'_, PyAny>,
    name: &str,
    number_type: NumberType,
) -> PyResult<Vec<&'a [T]>> {
    rows(tensor, number_type).ok_or_else(|| {
        unreadable(
            name,
            &format!("rows of {} side by side", number_type.name()),
        )
    })
}

/// A copy of all numbers of a tensor.
#[expect(unsafe_code, reason = "torch's memory")]
fn numbers<T: Copy>(
    tensor: &Bound<'_, PyAny>,
    name: &str,
    number_type: NumberType,
) -> PyResult<Vec<T>> {
    let view = View::of(tensor).filter(|view| view.number_type == number_type);
    // SAFETY: of that type, whose bits are what T takes; the GIL is held until they are copied.
    let numbers = view.and_then(|view| unsafe { view.copied() });
    numbers.ok_or_else(|| unreadable(name, &format!("numbers of {}", number_type.name())))
}

fn unreadable(name: &str, what: &str) -> PyErr {
    to_py(Error::argument(format!(
        "{name} must be a plain torch.Tensor on the CPU with {what}"
    )))
}
