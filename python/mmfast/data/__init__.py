"""The data plane: indexed datasets on disk, and the loader that turns them into training batches.

Datasets need no torch; names are resolved on first use, so importing them loads none.

    >>> from mmfast.data import IndexedDataset, IndexedDatasetBuilder
    >>> with IndexedDatasetBuilder("/tmp/example", multimodal=True) as builder:
    ...     builder.add_item([5, 6, 7])  # a caption
    ...     builder.add_item([100, 101, 102, 103], mode=1)  # an image
    ...     builder.end_document()
    >>> [segment.mode for segment in IndexedDataset("/tmp/example").document(0)]
    [0, 1]
"""

from typing import TYPE_CHECKING

from mmfast.lazy import lazy_names

if TYPE_CHECKING:
    from mmfast.data.batch import Batch
    from mmfast.data.builder import IndexedDatasetBuilder, Written, merge_datasets, optimal_dtype
    from mmfast.data.dataset import DamagedBlock, IndexedDataset, Scan, Sidecar
    from mmfast.data.loader import Loader, Source
    from mmfast.data.media import BatchMedia, MediaReference
    from mmfast.data.megatron_order import MegatronOrder, MegatronSample
    from mmfast.data.packing import Bins, pack
    from mmfast.data.segment import Segment

__all__ = [
    "Batch",
    "BatchMedia",
    "Bins",
    "DamagedBlock",
    "IndexedDataset",
    "IndexedDatasetBuilder",
    "Loader",
    "MediaReference",
    "MegatronOrder",
    "MegatronSample",
    "Scan",
    "Segment",
    "Sidecar",
    "Source",
    "Written",
    "merge_datasets",
    "optimal_dtype",
    "pack",
]

_MODULE_OF_NAME = {
    "Batch": "mmfast.data.batch",
    "BatchMedia": "mmfast.data.media",
    "Bins": "mmfast.data.packing",
    "DamagedBlock": "mmfast.data.dataset",
    "IndexedDataset": "mmfast.data.dataset",
    "IndexedDatasetBuilder": "mmfast.data.builder",
    "Loader": "mmfast.data.loader",
    "MediaReference": "mmfast.data.media",
    "MegatronOrder": "mmfast.data.megatron_order",
    "MegatronSample": "mmfast.data.megatron_order",
    "Scan": "mmfast.data.dataset",
    "Segment": "mmfast.data.segment",
    "Sidecar": "mmfast.data.dataset",
    "Source": "mmfast.data.loader",
    "Written": "mmfast.data.builder",
    "merge_datasets": "mmfast.data.builder",
    "optimal_dtype": "mmfast.data.builder",
    "pack": "mmfast.data.packing",
}

__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF_NAME)
