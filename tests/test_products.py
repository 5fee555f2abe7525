"""Laws of products.cpp: a product is right, and the bits of an element depend on its row and its column alone."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from discover import artefact

CAPABILITY = torch.backends.cpu.get_cpu_capability()

pytestmark = pytest.mark.skipif(
    not artefact.have_compiler() or CAPABILITY not in ("AVX2", "AVX512"),
    reason="needs a C++ compiler and AVX2, without which products.cpp is empty",
)

# What AOTInductor declares, as far as products.cpp names it; nothing here calls it.
HARNESS = """
#include <cstdint>
typedef void* AtenTensorHandle;
typedef int AOTITorchError;
#define AOTI_TORCH_SUCCESS 0
#define STUB(name) template <class... A> int name(A...) { return 1; }
STUB(aoti_torch_get_dtype) STUB(aoti_torch_dtype_float32) STUB(aoti_torch_get_device_type)
STUB(aoti_torch_device_type_cpu) STUB(aoti_torch_get_dim) STUB(aoti_torch_get_sizes) STUB(aoti_torch_get_strides)
STUB(aoti_torch_get_data_ptr) STUB(aoti_torch_cpu_bmm_out) STUB(aoti_torch_cpu_mm_out)
STUB(aoti_torch_cpu_baddbmm_out) STUB(aoti_torch_cpu_addmm_out)
#include "products.cpp"
static discover_products::Matrix matrix(float* at, const int64_t* s) {
    return {at, s[0], s[1], s[2], s[3], s[4], s[5]};
}
extern "C" void product(float* a, const int64_t* as, float* b, const int64_t* bs, float* bias, const int64_t* biass,
                        float* out, const int64_t* outs) {
    const auto add = bias ? matrix(bias, biass) : discover_products::Matrix{};
    discover_products::product(matrix(a, as), matrix(b, bs), bias ? &add : nullptr, matrix(out, outs));
}
"""

Product = Callable[..., torch.Tensor]


def built(instructions: str, folder: Path) -> Product:
    """The products with AVX2 or with AVX-512, of which a processor that has both can run either."""
    if instructions == "AVX512" != CAPABILITY:
        pytest.skip("needs AVX-512")
    (folder / "harness.cpp").write_text(HARNESS)
    command = [artefact.compiler(), "-std=c++17", "-O1", "-march=native", "-ffp-contract=off", "-shared", "-fPIC"]
    command += ["-mno-avx512f"] if instructions == "AVX2" else []
    include = f"-I{Path(artefact.__file__).parent}"
    subprocess.run([*command, include, "harness.cpp", "-o", "harness.so"], cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / "harness.so"))

    def run(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        out = torch.full((len(a), a.shape[1], b.shape[2]), torch.nan)
        arguments: list[object] = []
        for x in (a, b, None if bias is None else bias.expand(out.shape), out):
            facts = None if x is None else np.array([*x.shape, *x.stride()], np.int64)
            arguments += [
                None if x is None else ctypes.c_void_p(x.data_ptr()),
                None if facts is None else facts.ctypes.data_as(ctypes.c_void_p),
            ]
        library.product(*arguments)
        return out

    return run


@pytest.fixture(scope="module", params=["AVX2", "AVX512"])
def product(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Product:
    return built(request.param, tmp_path_factory.mktemp("products"))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


SIZES = [(1, 1, 1), (2, 3, 5), (8, 16, 32), (9, 17, 33), (10, 64, 32), (15, 31, 16), (32, 64, 64), (13, 97, 28)]


@pytest.mark.parametrize(("rows", "terms", "columns"), SIZES)
@pytest.mark.parametrize("layout", ["plain", "transposed", "both transposed", "shared", "spread"])
@pytest.mark.parametrize("added", ["nothing", "a column", "a row"])
def test_a_product_is_right_in_every_layout(
    product: Product, rows: int, terms: int, columns: int, layout: str, added: str
) -> None:
    a, b = normal(3, rows, terms), normal(3, terms, columns, seed=1)
    if layout in ("transposed", "both transposed"):
        b = b.mT.contiguous().mT
    if layout == "both transposed":
        a = a.mT.contiguous().mT
    if layout == "shared":
        b = b.mT[:1].contiguous().mT.expand(3, terms, columns)
    if layout == "spread":
        b = normal(3, terms, columns, 2, seed=1)[..., 0]
    bias = {"nothing": None, "a column": normal(3, rows, 1, seed=2), "a row": normal(3, 1, columns, seed=2)}[added]
    expected = a.double() @ b.double() + (0 if bias is None else bias.double())
    torch.testing.assert_close(product(a, b, bias).double(), expected, rtol=1e-4, atol=1e-5)


def test_the_bits_of_an_element_depend_on_its_row_and_its_column_alone(product: Product) -> None:
    a, b = normal(2, 21, 40), normal(2, 40, 75, seed=1)
    whole = product(a, b)
    packed = product(a, b.mT.contiguous().mT)
    assert torch.equal(whole, packed)
    for rows, columns in ((slice(3, 4), slice(0, 75)), (slice(5, 19), slice(37, 75)), (slice(0, 21), slice(74, 75))):
        assert torch.equal(product(a[:, rows], b[:, :, columns]), whole[:, rows, columns])


def test_a_value_that_is_not_finite_stays_in_its_row_or_column(product: Product) -> None:
    a, b = normal(1, 12, 20), normal(1, 20, 50, seed=1)
    whole = product(a, b)
    a[0, 3, 7], b[0, 2, 40] = torch.inf, torch.nan
    spoiled = product(a, b)
    kept = torch.ones(12, 50, dtype=torch.bool)
    kept[3], kept[:, 40] = False, False
    assert torch.equal(spoiled[0][kept], whole[0][kept])
    assert not torch.isfinite(spoiled[0][~kept]).any()


def test_both_kinds_of_instructions_give_the_same_bits(product: Product, tmp_path: Path) -> None:
    other = built("AVX512", tmp_path)
    for rows, terms, columns in SIZES:
        a, b, bias = normal(3, rows, terms), normal(3, terms, columns, seed=1), normal(3, rows, 1, seed=2)
        assert torch.equal(product(a, b, bias), other(a, b, bias))
