// Small matrix products, for the tiles of `discover.gradient`: they take the place of the BLAS in a compiled artefact.
//
// A tile has many products of some ten rows and columns. The BLAS that comes with torch copies both operands of each, and
// has half of the vector width on AMD processors with AVX-512; this uses all of it, and reads operands where they lie. An
// element of a product is the sum over k from 0 on, each term added by a fused multiply-add, and then the bias: its bits
// depend neither on the size of the product, nor on the place in it, nor on where in memory it lies, nor on whether AVX2
// or AVX-512 computes it.
//
// The text is put into what AOTInductor generates, before everything else (`_compile` there); what that calls
// aoti_torch_cpu_bmm_out is then `discover_bmm_out`. Products that are large or of another type go to torch as before.

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#pragma GCC push_options
#pragma GCC optimize("O3")
#define ALWAYS_INLINE inline __attribute__((always_inline))  // which -O1 does not do by itself

namespace discover_products {

constexpr int64_t kLongest = 1024;  // terms of a sum; above it the BLAS is as fast, and rounds less

// All that depends on the instructions. A block of kRows rows and kVectors vectors of columns holds its sums in registers:
// 16 of 32 with AVX-512, 12 of 16 with AVX2.
struct Whole {};  // in place of a Mask: all of a vector

#if defined(__AVX512F__)
using Vector = __m512;
using Mask = __mmask16;
constexpr int64_t kLanes = 16, kRows = 8, kVectors = 2;

ALWAYS_INLINE Mask first(int64_t count) { return static_cast<Mask>(0xffff >> (kLanes - count)); }
ALWAYS_INLINE Vector all(float x) { return _mm512_set1_ps(x); }
ALWAYS_INLINE Vector load(const float* at, Whole) { return _mm512_loadu_ps(at); }
ALWAYS_INLINE Vector load(const float* at, Mask mask) { return _mm512_maskz_loadu_ps(mask, at); }
ALWAYS_INLINE void store(float* at, Whole, Vector x) { _mm512_storeu_ps(at, x); }
ALWAYS_INLINE void store(float* at, Mask mask, Vector x) { _mm512_mask_storeu_ps(at, mask, x); }
ALWAYS_INLINE Vector add(Vector x, Vector y) { return _mm512_add_ps(x, y); }
ALWAYS_INLINE Vector multiply_add(Vector x, Vector y, Vector sum) { return _mm512_fmadd_ps(x, y, sum); }

// kLanes rows of kLanes floats, `from_row` apart, as columns.
inline void transpose(const float* from, int64_t from_row, float* to, int64_t to_row) {
    __m512 r[16], s[16];
    for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_ps(from + i * from_row);
    for (int i = 0; i < 16; i += 2) {
        s[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        s[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; ++j) {
            const __m512d x = _mm512_castps_pd(s[i + j]), y = _mm512_castps_pd(s[i + j + 2]);
            r[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
            r[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
        }
    for (int i = 0; i < 4; ++i) {
        const __m512 x = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88), y = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
        const __m512 z = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88), w = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
        s[i] = _mm512_shuffle_f32x4(x, z, 0x88);
        s[i + 8] = _mm512_shuffle_f32x4(x, z, 0xdd);
        s[i + 4] = _mm512_shuffle_f32x4(y, w, 0x88);
        s[i + 12] = _mm512_shuffle_f32x4(y, w, 0xdd);
    }
    for (int i = 0; i < 16; ++i) _mm512_storeu_ps(to + i * to_row, s[i]);
}
#else
using Vector = __m256;
using Mask = __m256i;
constexpr int64_t kLanes = 8, kRows = 6, kVectors = 2;

ALWAYS_INLINE Mask first(int64_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
ALWAYS_INLINE Vector all(float x) { return _mm256_set1_ps(x); }
ALWAYS_INLINE Vector load(const float* at, Whole) { return _mm256_loadu_ps(at); }
ALWAYS_INLINE Vector load(const float* at, Mask mask) { return _mm256_maskload_ps(at, mask); }
ALWAYS_INLINE void store(float* at, Whole, Vector x) { _mm256_storeu_ps(at, x); }
ALWAYS_INLINE void store(float* at, Mask mask, Vector x) { _mm256_maskstore_ps(at, mask, x); }
ALWAYS_INLINE Vector add(Vector x, Vector y) { return _mm256_add_ps(x, y); }
ALWAYS_INLINE Vector multiply_add(Vector x, Vector y, Vector sum) { return _mm256_fmadd_ps(x, y, sum); }

// kLanes rows of kLanes floats, `from_row` apart, as columns.
inline void transpose(const float* from, int64_t from_row, float* to, int64_t to_row) {
    __m256 r[8], s[8];
    for (int i = 0; i < 4; ++i)  // halves of rows i and i + 4 side by side, so that what follows stays within halves
        for (int j = 0; j < 2; ++j) {
            const float* const half = from + i * from_row + 4 * j;
            r[i + 4 * j] = _mm256_set_m128(_mm_loadu_ps(half + 4 * from_row), _mm_loadu_ps(half));
        }
    for (int i = 0; i < 8; i += 2) {
        s[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        s[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; ++j) {
            _mm256_storeu_ps(to + (i + 2 * j) * to_row, _mm256_shuffle_ps(s[i + j], s[i + j + 2], 0x44));
            _mm256_storeu_ps(to + (i + 2 * j + 1) * to_row, _mm256_shuffle_ps(s[i + j], s[i + j + 2], 0xee));
        }
}
#endif

struct Matrix {
    float* at;
    int64_t batches, rows, columns, batch, row, column;  // three sizes, three strides

    float* of(int64_t index) const { return at + index * batch; }
};

// Where a block of A B + bias begins, and how far it is to the next row, column or term.
struct Place {
    const float* a;
    int64_t a_row, a_k;
    const float* b;
    int64_t b_k, terms;
    const float* bias;
    int64_t bias_row, bias_column;
    float* out;
    int64_t out_row;
};

// R rows and C vectors of columns, of the last of which there is what `last` says.
template <int R, int C, class Last>
ALWAYS_INLINE void block(const Place& p, Last last) {
    Vector sums[R][C];
    for (int i = 0; i < R; ++i)
        for (int j = 0; j < C; ++j) sums[i][j] = all(0.0f);
    for (int64_t k = 0; k < p.terms; ++k) {
        const float* const b = p.b + k * p.b_k;
        Vector x[C];
        for (int j = 0; j < C; ++j) x[j] = j + 1 < C ? load(b + j * kLanes, Whole{}) : load(b + j * kLanes, last);
        for (int i = 0; i < R; ++i) {
            const Vector w = all(p.a[i * p.a_row + k * p.a_k]);
            for (int j = 0; j < C; ++j) sums[i][j] = multiply_add(w, x[j], sums[i][j]);
        }
    }
    for (int i = 0; i < R; ++i)
        for (int j = 0; j < C; ++j) {
            if (p.bias) {
                const float* const at = p.bias + i * p.bias_row + j * kLanes * p.bias_column;
                const Vector x = !p.bias_column ? all(*at) : j + 1 < C ? load(at, Whole{}) : load(at, last);
                sums[i][j] = add(sums[i][j], x);
            }
            float* const to = p.out + i * p.out_row + j * kLanes;
            if (j + 1 < C) store(to, Whole{}, sums[i][j]);
            else store(to, last, sums[i][j]);
        }
}

// A block of so many rows, at most R.
template <int R, int C, class Last>
ALWAYS_INLINE void block_of(int64_t rows, const Place& p, Last last) {
    if constexpr (R > 1)
        if (rows < R) return block_of<R - 1, C>(rows, p, last);
    block<R, C>(p, last);
}

// All rows of C vectors of columns, in blocks as equal as can be: one of few rows would wait for its own sums.
template <int C, class Last>
void rows_of(int64_t rows, Place p, Last last) {
    for (int64_t blocks = (rows + kRows - 1) / kRows; blocks > 0; --blocks) {
        const int64_t now = (rows + blocks - 1) / blocks;
        block_of<kRows, C>(now, p, last);
        rows -= now;
        p.a += now * p.a_row;
        p.out += now * p.out_row;
        if (p.bias) p.bias += now * p.bias_row;
    }
}

// All rows of at most C vectors, the last of which may be in part.
template <int C>
void columns_of(int64_t rows, int64_t columns, const Place& p) {
    if constexpr (C > 1)
        if (columns <= (C - 1) * kLanes) return columns_of<C - 1>(rows, columns, p);
    if (columns == C * kLanes) rows_of<C>(rows, p, Whole{});
    else rows_of<C>(rows, p, first(columns - (C - 1) * kLanes));
}

// B with its columns side by side: [terms][columns].
inline void pack(const float* b, int64_t b_k, int64_t b_column, int64_t terms, int64_t columns, float* to) {
    if (b_k != 1) {
        for (int64_t k = 0; k < terms; ++k)
            for (int64_t j = 0; j < columns; ++j) to[k * columns + j] = b[k * b_k + j * b_column];
        return;
    }
    const int64_t whole_k = terms & -kLanes, whole = columns & -kLanes;
    for (int64_t j = 0; j < whole; j += kLanes)
        for (int64_t k = 0; k < whole_k; k += kLanes) transpose(b + j * b_column + k, b_column, to + k * columns + j, columns);
    for (int64_t j = 0; j < columns; ++j)
        for (int64_t k = j < whole ? whole_k : 0; k < terms; ++k) to[k * columns + j] = b[k + j * b_column];
}

inline void product(const Matrix& a, const Matrix& b, const Matrix* bias, const Matrix& out) {
    static thread_local std::vector<float> packed;
    const int64_t terms = a.columns, columns = b.columns;
    const bool in_place = b.column == 1;
    if (!in_place) packed.resize(terms * columns);
    for (int64_t index = 0; index < out.batches; ++index) {
        if (!in_place && (index == 0 || b.batch)) pack(b.of(index), b.row, b.column, terms, columns, packed.data());
        Place p{a.of(index), a.row, a.column, in_place ? b.of(index) : packed.data(), in_place ? b.row : columns, terms};
        p.out = out.of(index), p.out_row = out.row;
        if (bias) p.bias = bias->of(index), p.bias_row = bias->row, p.bias_column = bias->column;
        constexpr int64_t wide = kVectors * kLanes;
        for (int64_t j = 0; j < columns; j += wide) {
            columns_of<kVectors>(out.rows, std::min(wide, columns - j), p);
            p.b += wide, p.out += wide;
            if (bias) p.bias += wide * p.bias_column;
        }
    }
}

// A tensor of two or three axes as a Matrix; false for what this does not multiply.
inline bool seen(AtenTensorHandle tensor, Matrix& matrix) {
    int32_t type, device;
    int64_t axes, *sizes, *strides;
    void* data;
    if (aoti_torch_get_dtype(tensor, &type) || type != aoti_torch_dtype_float32()) return false;
    if (aoti_torch_get_device_type(tensor, &device) || device != aoti_torch_device_type_cpu()) return false;
    if (aoti_torch_get_dim(tensor, &axes) || aoti_torch_get_sizes(tensor, &sizes)) return false;
    if (aoti_torch_get_strides(tensor, &strides) || aoti_torch_get_data_ptr(tensor, &data)) return false;
    float* const at = static_cast<float*>(data);
    if (axes == 3) matrix = {at, sizes[0], sizes[1], sizes[2], strides[0], strides[1], strides[2]};
    if (axes == 2) matrix = {at, 1, sizes[0], sizes[1], 0, strides[0], strides[1]};
    if (axes == 1) matrix = {at, 1, 1, sizes[0], 0, 0, strides[0]};
    return axes >= 1 && axes <= 3;
}

// Spreads an axis of one to the size that it is added to.
inline bool spread(int64_t& size, int64_t& stride, int64_t wanted) {
    if (size == 1 && wanted != 1) {
        size = wanted;
        stride = 0;
    }
    return size == wanted;
}

// Whether it was done here.
inline bool multiplied(AtenTensorHandle out, AtenTensorHandle bias, AtenTensorHandle a, AtenTensorHandle b) {
    Matrix c, x, y, add;
    if (!seen(out, c) || !seen(a, x) || !seen(b, y) || (bias && !seen(bias, add))) return false;
    if (c.column != 1 || x.columns > kLongest || x.columns * y.columns > (1 << 16)) return false;
    if (bias) {
        if (!spread(add.batches, add.batch, c.batches) || !spread(add.rows, add.row, c.rows)) return false;
        if (!spread(add.columns, add.column, c.columns)) return false;
        if (add.column > 1) return false;
    }
    product(x, y, bias ? &add : nullptr, c);
    return true;
}

inline AOTITorchError bmm_out(AtenTensorHandle out, AtenTensorHandle a, AtenTensorHandle b) {
    return multiplied(out, nullptr, a, b) ? AOTI_TORCH_SUCCESS : aoti_torch_cpu_bmm_out(out, a, b);
}

inline AOTITorchError mm_out(AtenTensorHandle out, AtenTensorHandle a, AtenTensorHandle b) {
    return multiplied(out, nullptr, a, b) ? AOTI_TORCH_SUCCESS : aoti_torch_cpu_mm_out(out, a, b);
}

inline AOTITorchError baddbmm_out(AtenTensorHandle out, AtenTensorHandle bias, AtenTensorHandle a, AtenTensorHandle b,
                                  double beta, double alpha) {
    if (beta == 1.0 && alpha == 1.0 && multiplied(out, bias, a, b)) return AOTI_TORCH_SUCCESS;
    return aoti_torch_cpu_baddbmm_out(out, bias, a, b, beta, alpha);
}

inline AOTITorchError addmm_out(AtenTensorHandle out, AtenTensorHandle bias, AtenTensorHandle a, AtenTensorHandle b,
                                double beta, double alpha) {
    if (beta == 1.0 && alpha == 1.0 && multiplied(out, bias, a, b)) return AOTI_TORCH_SUCCESS;
    return aoti_torch_cpu_addmm_out(out, bias, a, b, beta, alpha);
}

}  // namespace discover_products

#undef ALWAYS_INLINE
#pragma GCC pop_options

#define aoti_torch_cpu_bmm_out discover_products::bmm_out
#define aoti_torch_cpu_mm_out discover_products::mm_out
#define aoti_torch_cpu_baddbmm_out discover_products::baddbmm_out
#define aoti_torch_cpu_addmm_out discover_products::addmm_out
#endif
