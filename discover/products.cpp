// Small matrix products, for the tiles of `discover.gradient`: they take the place of the BLAS in a compiled artefact.
//
// A tile has many products of some ten rows and columns. The BLAS that comes with torch runs them on AMD processors with
// half of the vector width; this uses all of it, and reads operands where they lie. An element of a product is the sum over
// k from 0 on, each term added by a fused multiply-add, and then the bias: its bits depend neither on the size of the
// product, nor on the place in it, nor on where in memory it lies.
//
// The text is put into what AOTInductor generates, before everything else (`_compile` there); what that calls
// aoti_torch_cpu_bmm_out is then `discover_bmm_out`. Products that are large or of another type go to torch as before.

#if defined(__AVX512F__)
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#pragma GCC push_options
#pragma GCC optimize("O3")

namespace discover_products {

constexpr int64_t kLanes = 16;    // floats in a vector
constexpr int64_t kPanel = 32;    // columns of a block
constexpr int64_t kRows = 8;      // rows of a block: sixteen sums stay in registers
constexpr int64_t kLongest = 1024;  // terms of a sum; above it the BLAS is as fast, and rounds less

struct Matrix {
    float* at;
    int64_t batches, rows, columns, batch, row, column;  // three sizes, three strides

    float* of(int64_t index) const { return at + index * batch; }
};

// R rows and C vectors of columns of A B + bias. `last` masks what exists of the last vector.
template <int R, int C>
inline __attribute__((always_inline)) void block(const float* a, int64_t a_row, int64_t a_k, const float* b, int64_t b_k,
                                                 int64_t terms, __mmask16 last, const float* bias, int64_t bias_row,
                                                 int64_t bias_column, float* out, int64_t out_row) {
    __m512 sums[R][C];
    for (int i = 0; i < R; ++i)
        for (int j = 0; j < C; ++j) sums[i][j] = _mm512_setzero_ps();
    for (int64_t k = 0; k < terms; ++k) {
        __m512 x[C];
        for (int j = 0; j < C; ++j)
            x[j] = j + 1 < C ? _mm512_loadu_ps(b + k * b_k + j * kLanes)
                             : _mm512_maskz_loadu_ps(last, b + k * b_k + j * kLanes);
        for (int i = 0; i < R; ++i) {
            const __m512 w = _mm512_set1_ps(a[i * a_row + k * a_k]);
            for (int j = 0; j < C; ++j) sums[i][j] = _mm512_fmadd_ps(w, x[j], sums[i][j]);
        }
    }
    for (int i = 0; i < R; ++i)
        for (int j = 0; j < C; ++j) {
            const __mmask16 mask = j + 1 < C ? static_cast<__mmask16>(-1) : last;
            if (bias) {
                const float* at = bias + i * bias_row + j * kLanes * bias_column;
                sums[i][j] = _mm512_add_ps(sums[i][j], bias_column ? _mm512_maskz_loadu_ps(mask, at) : _mm512_set1_ps(*at));
            }
            _mm512_mask_storeu_ps(out + i * out_row + j * kLanes, mask, sums[i][j]);
        }
}

template <int C>
void rows_of(int64_t rows, const float* a, int64_t a_row, int64_t a_k, const float* b, int64_t b_k, int64_t terms,
             __mmask16 last, const float* bias, int64_t bias_row, int64_t bias_column, float* out, int64_t out_row) {
    for (; rows > 0; rows -= kRows) {
        switch (std::min(rows, kRows)) {
            case 8: block<8, C>(a, a_row, a_k, b, b_k, terms, last, bias, bias_row, bias_column, out, out_row); break;
            case 7: block<7, C>(a, a_row, a_k, b, b_k, terms, last, bias, bias_row, bias_column, out, out_row); break;
            case 6: block<6, C>(a, a_row, a_k, b, b_k, terms, last, bias, bias_row, bias_column, out, out_row); break;
            case 5: block<5, C>(a, a_row, a_k, b, b_k, terms, last, bias, bias_row, bias_column, out, out_row); break;
            case 4: block<4, C>(a, a_row, a_k, b, b_k, terms, last, bias, bias_row, bias_column, out, out_row); break;
            case 3: block<3, C>(a, a_row, a_k, b, b_k, terms, last, bias, bias_row, bias_column, out, out_row); break;
            case 2: block<2, C>(a, a_row, a_k, b, b_k, terms, last, bias, bias_row, bias_column, out, out_row); break;
            default: block<1, C>(a, a_row, a_k, b, b_k, terms, last, bias, bias_row, bias_column, out, out_row);
        }
        a += kRows * a_row;
        out += kRows * out_row;
        if (bias) bias += kRows * bias_row;
    }
}

// Sixteen rows of sixteen floats, `from_row` apart, as sixteen columns.
inline void transposed(const float* from, int64_t from_row, float* to, int64_t to_row) {
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

// B with its columns side by side: [terms][columns].
inline void pack(const float* b, int64_t b_k, int64_t b_column, int64_t terms, int64_t columns, float* to) {
    if (b_k != 1) {
        for (int64_t k = 0; k < terms; ++k)
            for (int64_t j = 0; j < columns; ++j) to[k * columns + j] = b[k * b_k + j * b_column];
        return;
    }
    const int64_t whole_k = terms & -kLanes, whole = columns & -kLanes;
    for (int64_t j = 0; j < whole; j += kLanes)
        for (int64_t k = 0; k < whole_k; k += kLanes) transposed(b + j * b_column + k, b_column, to + k * columns + j, columns);
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
        const float* from = in_place ? b.of(index) : packed.data();
        const int64_t b_k = in_place ? b.row : columns;
        for (int64_t j = 0; j < columns; j += kPanel) {
            const int64_t wide = std::min(kPanel, columns - j), vectors = (wide + kLanes - 1) / kLanes;
            const __mmask16 last = static_cast<__mmask16>(0xffff >> (vectors * kLanes - wide));
            const float* add = bias ? bias->of(index) + j * bias->column : nullptr;
            auto* const run = vectors == 2 ? rows_of<2> : rows_of<1>;
            run(out.rows, a.of(index), a.row, a.column, from + j, b_k, terms, last, add, bias ? bias->row : 0,
                bias ? bias->column : 0, out.of(index) + j, out.row);
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

#pragma GCC pop_options

#define aoti_torch_cpu_bmm_out discover_products::bmm_out
#define aoti_torch_cpu_mm_out discover_products::mm_out
#define aoti_torch_cpu_baddbmm_out discover_products::baddbmm_out
#define aoti_torch_cpu_addmm_out discover_products::addmm_out
#endif
