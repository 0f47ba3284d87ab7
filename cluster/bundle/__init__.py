"""The artifact that training hands to serving: manifest, tensor signature, transforms, read, write, verify."""

from cluster.bundle.files import Bundle, finish_bundle, open_bundle, read_manifest, write_bundle
from cluster.bundle.manifest import BundleManifest, Variant
from cluster.bundle.signature import TensorSignature, TensorSpec

__all__ = [
    "Bundle",
    "BundleManifest",
    "TensorSignature",
    "TensorSpec",
    "Variant",
    "finish_bundle",
    "open_bundle",
    "read_manifest",
    "write_bundle",
]
