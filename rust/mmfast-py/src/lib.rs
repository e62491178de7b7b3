//! The extension module `mmfast._mmfast`: a list of signatures over `mmfast-core`.

mod arguments;
mod dataset;
mod dlpack;
mod error;
mod gather;
mod gil;
mod loader;
mod memory;
mod objective;
mod order;
mod sampling;
mod writer;

use pyo3::prelude::*;

#[pymodule(gil_used = false)]
mod _mmfast {
    use super::{Bound, PyModule, PyModuleMethods, PyResult};

    #[pymodule_export]
    use super::dataset::DatasetReader;
    #[pymodule_export]
    use super::gather::gather;
    #[pymodule_export]
    use super::loader::BatchLoader;
    #[pymodule_export]
    use super::objective::Objective;
    #[pymodule_export]
    use super::order::{megatron_indices, megatron_samples, pack_lengths};
    #[pymodule_export]
    use super::sampling::draw_rows;
    #[pymodule_export]
    use super::writer::{DatasetWriter, merge_datasets};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        let profile = if cfg!(debug_assertions) {
            "debug"
        } else {
            "release"
        };
        let (arch, os) = (std::env::consts::ARCH, std::env::consts::OS);
        module.add(
            "__build__",
            format!("{profile} {arch}-{os}, {}", env!("MMFAST_RUSTC")),
        )
    }
}
