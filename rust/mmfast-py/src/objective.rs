//! Training objectives for Python: built once from plain values, applied to single documents here and
//! to whole batches by the loader.

use std::ops::Range;

use mmfast_core::Error;
use mmfast_core::objective::{
    CaptionDropout, Cm3, ImageNoise, Objective as CoreObjective, Sequence, SpanCount, Transformed,
};
use mmfast_core::random::{Chance, DocumentKey, PoissonTable};
use numpy::{IntoPyArray, PyArray1, PyArrayMethods};
use pyo3::prelude::*;

use crate::error::to_py;
use crate::gil::run_detached;

/// Ids, input ids, modalities, weights, number of spans.
type TransformedArrays<'py> = (
    Bound<'py, PyArray1<i64>>,
    Bound<'py, PyArray1<i64>>,
    Bound<'py, PyArray1<u8>>,
    Bound<'py, PyArray1<f32>>,
    usize,
);

/// A training objective without a seed.
#[pyclass(frozen, module = "mmfast._mmfast")]
pub(crate) struct Objective {
    pub(crate) core: CoreObjective,
}

#[pymethods]
impl Objective {
    #[staticmethod]
    #[pyo3(signature = (*, image_noise_prob, code_ranges))]
    fn next_token(image_noise_prob: f64, code_ranges: Vec<(i64, i64)>) -> PyResult<Self> {
        let noise = noise(image_noise_prob, code_ranges).map_err(to_py)?;
        Ok(Self {
            core: CoreObjective::next_token(noise),
        })
    }

    #[staticmethod]
    #[pyo3(signature = (*, spans, span_rate, min_spans, max_spans, whole_segment_prob,
        whole_segment_modality, sentinel_loss_weight, image_noise_prob, code_ranges, sentinels, eoss,
        separators))]
    #[expect(
        clippy::too_many_arguments,
        reason = "the fields of one configuration, all passed by keyword"
    )]
    fn cm3(
        spans: &str,
        span_rate: f64,
        min_spans: u64,
        max_spans: u64,
        whole_segment_prob: f64,
        whole_segment_modality: Option<u8>,
        sentinel_loss_weight: f32,
        image_noise_prob: f64,
        code_ranges: Vec<(i64, i64)>,
        sentinels: Vec<i64>,
        eoss: i64,
        separators: Vec<i64>,
    ) -> PyResult<Self> {
        let build = || {
            let masking = Cm3 {
                count: span_count(spans, span_rate)?,
                min_spans,
                max_spans,
                whole_segment: Chance::new("whole_segment_prob", whole_segment_prob)?,
                whole_segment_modality,
                sentinel_loss_weight,
                sentinels,
                eoss,
                separators,
            };
            let noise = noise(image_noise_prob, code_ranges)?;
            Ok(CoreObjective::cm3(masking.checked()?, noise))
        };
        Ok(Self {
            core: build().map_err(to_py)?,
        })
    }

    /// The same objective with captions left out of some documents.
    #[pyo3(signature = (*, probability, special, ends))]
    fn with_caption_dropout(
        &self,
        probability: f64,
        special: Vec<i64>,
        ends: Vec<i64>,
    ) -> PyResult<Self> {
        let dropout = CaptionDropout::new(probability, special, ends).map_err(to_py)?;
        Ok(Self {
            core: self.core.clone().with_caption_dropout(dropout),
        })
    }

    #[pyo3(signature = (ids, lengths, modes, *, max_tokens, seed, source, epoch, document))]
    #[expect(
        clippy::too_many_arguments,
        reason = "a document, and the numbers that name it, by keyword"
    )]
    fn transform<'py>(
        &self,
        py: Python<'py>,
        ids: &Bound<'py, PyArray1<i64>>,
        lengths: Vec<u32>,
        modes: Vec<u8>,
        max_tokens: u64,
        seed: u64,
        source: u64,
        epoch: u64,
        document: u64,
    ) -> PyResult<TransformedArrays<'py>> {
        let ids = ids.try_readonly()?;
        let ids = ids.as_slice()?;
        let output = run_detached(py, || {
            if lengths.len() != modes.len() {
                return Err(Error::argument(format!(
                    "{} lengths and {} modes do not belong together",
                    lengths.len(),
                    modes.len()
                )));
            }
            let sequences: Vec<Sequence> = lengths
                .into_iter()
                .zip(modes)
                .map(|(length, mode)| Sequence { length, mode })
                .collect();
            let total = mmfast_core::objective::total_length(&sequences);
            if total != ids.len() as u64 || total > max_tokens {
                return Err(Error::argument(format!(
                    "a document of {} ids has sequences of {total} ids and at most {max_tokens} may be used",
                    ids.len()
                )));
            }
            let key = DocumentKey::new(source, epoch, document, 0)?;
            let mut output = Transformed::default();
            let objective = self.core.clone().seeded(seed);
            objective.transform(key, &sequences, ids, max_tokens, &mut output);
            Ok(output)
        })?;
        Ok((
            output.ids.into_pyarray(py),
            output.input_ids.into_pyarray(py),
            output.modalities.into_pyarray(py),
            output.weights.into_pyarray(py),
            output.num_spans,
        ))
    }
}

fn noise(
    probability: f64,
    code_ranges: Vec<(i64, i64)>,
) -> mmfast_core::Result<Option<ImageNoise>> {
    let ranges: Vec<Range<i64>> = code_ranges.into_iter().map(|(a, b)| a..b).collect();
    ImageNoise::new(probability, ranges)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the fixed count was checked to be a small whole number"
)]
fn span_count(spans: &str, rate: f64) -> mmfast_core::Result<SpanCount> {
    match spans {
        "poisson" => Ok(SpanCount::Poisson(PoissonTable::new("span_rate", rate)?)),
        "fixed" if rate.fract() == 0.0 && (0.0..=65_536.0).contains(&rate) => {
            Ok(SpanCount::Fixed(rate as u64))
        }
        "fixed" => Err(Error::argument(format!(
            "span_rate is the number of spans when spans is fixed and must be whole, found {rate}"
        ))),
        _ => Err(Error::argument(format!(
            "spans is one of poisson, fixed; found {spans:?}"
        ))),
    }
}
