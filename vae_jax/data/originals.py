"""The original files of the data sets: their addresses, checksums and readers."""

from functools import partial

from vae_jax.data import files, formats

_MNIST_URL = "https://storage.googleapis.com/cvdf-datasets/mnist"
_FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
_AMAT_URL = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist"
_FREY_URL = "https://cs.nyu.edu/~roweis/data/frey_rawface.mat"

# By file: sha256 of the .gz that the address sends, sha256 of its unpacked content.
_MNIST = {
    "train-images-idx3-ubyte": (
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "train-labels-idx1-ubyte": (
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "t10k-images-idx3-ubyte": (
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "t10k-labels-idx1-ubyte": (
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}
_FASHION = {
    "train-images-idx3-ubyte": (
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    "train-labels-idx1-ubyte": (
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    "t10k-images-idx3-ubyte": (
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    "t10k-labels-idx1-ubyte": (
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}
_AMAT = {  # the address sends them unpacked
    "train": "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
    "valid": "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
    "test": "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
}
_FREY_ARRAY = "fbd70c2c992104024a20f4d253da1a1132eb6bf8ed142dccbe7d2b1743b705c4"


def _idx_files(url: str, sha256s: dict[str, tuple[str, str]]) -> tuple[files.File, ...]:
    return tuple(
        files.File(
            name=name,
            url=f"{url}/{name}.gz",
            packed_sha256=packed,
            read=partial(formats.read_idx, sha256=content),
        )
        for name, (packed, content) in sha256s.items()
    )


FILES: dict[str, tuple[files.File, ...]] = {
    "mnist": _idx_files(_MNIST_URL, _MNIST),
    "fashion_mnist": _idx_files(_FASHION_URL, _FASHION),
    "binarized_mnist": tuple(
        files.File(
            name=f"binarized_mnist_{split}.amat",
            url=f"{_AMAT_URL}/binarized_mnist_{split}.amat",
            packed_sha256=sha256,
            read=partial(formats.read_amat, sha256=sha256),
        )
        for split, sha256 in _AMAT.items()
    ),
    "frey_face": (
        files.File(
            name="frey_rawface.mat",
            url=_FREY_URL,
            packed_sha256=None,
            read=partial(formats.read_mat, variable="ff", sha256=_FREY_ARRAY),
        ),
    ),
}
"""Files by data set: train images and labels, then test; or train, valid, test."""

ORIGINS = {
    "mnist": f"original idx files of {_MNIST_URL}, sha256 of the content checked",
    "fashion_mnist": (
        f"original idx files of {_FASHION_URL}, sha256 of the content checked"
    ),
    "binarized_mnist": (
        f"original amat files of {_AMAT_URL}, sha256 of the content checked"
    ),
    "frey_face": (
        f"{_FREY_URL}, sha256 of the array checked, frames permuted by numpy "
        "default_rng(0)"
    ),
}
"""What a Source says of where its data came from."""
