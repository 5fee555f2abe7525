// Steps many elementwise rules at once: one call for all lanes of a batch.
//
// A rule is a short code over registers that hold a block of elements each; a block stays in the first-level cache while
// the whole code runs over it, so memory is touched once a step, whatever the rule. There is nothing to compile for a new
// rule. Arithmetic is IEEE float32, operation by operation: no contraction, no reassociation.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int64_t kBlock = 1024;
constexpr int kRegisters = 96;
constexpr int kWords = 5;  // operation, destination, three operands; an operand below 0 is number -1 - operand

struct Operand {
    const float* at;
    bool number;
};

template <class F>
inline void unary(float* __restrict out, Operand a, int64_t n, F f) {
    if (a.number) {
        const float x = f(*a.at);
        for (int64_t i = 0; i < n; ++i) out[i] = x;
    } else {
        for (int64_t i = 0; i < n; ++i) out[i] = f(a.at[i]);
    }
}

template <class F>
inline void binary(float* __restrict out, Operand a, Operand b, int64_t n, F f) {
    if (a.number && b.number) {
        const float x = f(*a.at, *b.at);
        for (int64_t i = 0; i < n; ++i) out[i] = x;
    } else if (a.number) {
        const float x = *a.at;
        for (int64_t i = 0; i < n; ++i) out[i] = f(x, b.at[i]);
    } else if (b.number) {
        const float y = *b.at;
        for (int64_t i = 0; i < n; ++i) out[i] = f(a.at[i], y);
    } else {
        for (int64_t i = 0; i < n; ++i) out[i] = f(a.at[i], b.at[i]);
    }
}

inline float get(Operand a, int64_t i) { return a.number ? *a.at : a.at[i]; }

inline float smaller(float a, float b) { return (a < b || a != a) ? a : b; }
inline float larger(float a, float b) { return (a > b || a != a) ? a : b; }

// Transcendental functions without branches, calls or tables, so that a loop over them is vector code, and with the same
// bits on every CPU. The intervals and polynomials are those of the Cephes library (Moshier 1984 to 1992, single
// precision); each is within two units in the last place of the true value, and NaN and infinities are as usual.

inline int32_t bits(float x) { int32_t i; std::memcpy(&i, &x, sizeof i); return i; }
inline float from_bits(int32_t i) { float x; std::memcpy(&x, &i, sizeof x); return x; }
inline float power_of_two(int32_t n) { return from_bits((n + 127) << 23); }  // n from -126 to 127

// exp(x) = 2^n exp(r), |r| <= ln(2) / 2. What is beyond the limits is 0 or infinity without them too.
inline float exponential(float x) {
    constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: a number below 2^22 added to it is rounded to a whole one
    const float kept = x > 89.0f ? 89.0f : x < -104.0f ? -104.0f : x;
    const float shifted = kept * 1.44269504088896341f + kRounder;
    const float n = shifted - kRounder;
    const float r = (kept - n * 0.693359375f) - n * -2.12194440e-4f;  // ln(2) in two parts, of which n times the first is exact
    float y = 1.9875691500e-4f;
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = (y * (r * r) + r) + 1.0f;
    const int32_t whole = std::min(std::max(bits(shifted) - bits(kRounder), -150), 128);  // of NaN anything: y is NaN
    const int32_t half = whole >> 1;
    return y * power_of_two(half) * power_of_two(whole - half);  // 2^128 is no float
}

// log(x) = e ln(2) + log(1 + m), sqrt(1/2) <= 1 + m < sqrt(2).
inline float logarithm(float x) {
    const bool tiny = x < 1.17549435e-38f;  // a denormal number, which has no exponent of its own
    const uint32_t above = static_cast<uint32_t>(bits(tiny ? x * 33554432.0f : x)) - bits(0.70710678118654752f);
    const int32_t i = static_cast<int32_t>(above);  // of a negative number anything: it has no logarithm
    const float e = static_cast<float>((i >> 23) - (tiny ? 25 : 0));
    const float m = from_bits((i & 0x7fffff) + bits(0.70710678118654752f)) - 1.0f;
    float y = 7.0376836292e-2f;
    y = y * m - 1.1514610310e-1f;
    y = y * m + 1.1676998740e-1f;
    y = y * m - 1.2420140846e-1f;
    y = y * m + 1.4249322787e-1f;
    y = y * m - 1.6668057665e-1f;
    y = y * m + 2.0000714765e-1f;
    y = y * m - 2.4999993993e-1f;
    y = y * m + 3.3333331174e-1f;
    const float square = m * m;
    y = y * (m * square) + e * -2.12194440e-4f - 0.5f * square;
    const float found = (m + y) + e * 0.693359375f;
    const float special = x == 0.0f ? -INFINITY : x > 0.0f ? x : NAN;  // infinity and NaN are x > 0, and neither
    return x > 0.0f && x < INFINITY ? found : special;
}

inline float hyperbolic_tangent(float x) {
    const float size = std::fabs(x), square = x * x;
    float y = -5.70498872745e-3f;
    y = y * square + 2.06390887954e-2f;
    y = y * square - 5.37397155531e-2f;
    y = y * square + 1.33314422036e-1f;
    y = y * square - 3.33332819422e-1f;
    const float near = y * square * x + x;
    const float far = 1.0f - 2.0f / (exponential(size + size) + 1.0f);
    return std::copysign(size < 0.625f ? near : far, x);  // of -0 too
}
inline float lerp(float a, float b, float w) { return std::fabs(w) < 0.5f ? a + w * (b - a) : b - (b - a) * (1.0f - w); }

// The operations, in the order of `OPERATIONS` in discover/native_code.py.
enum Operation : int32_t {
    kAdd, kSub, kMul, kDiv, kPow, kNeg, kLt, kLe, kGt, kGe, kEq, kNe, kWhere, kAbs, kSign, kSquare, kSqrt, kRsqrt,
    kReciprocal, kExp, kLog, kTanh, kSigmoid, kMin, kMax, kClip, kLerp, kNumber, kMod
};

void run(const int32_t* word, float* __restrict out, Operand a, Operand b, Operand c, int64_t n) {
    switch (static_cast<Operation>(word[0])) {
        case kAdd: return binary(out, a, b, n, [](float x, float y) { return x + y; });
        case kSub: return binary(out, a, b, n, [](float x, float y) { return x - y; });
        case kMul: return binary(out, a, b, n, [](float x, float y) { return x * y; });
        case kDiv: return binary(out, a, b, n, [](float x, float y) { return x / y; });
        case kPow: return binary(out, a, b, n, [](float x, float y) { return std::pow(x, y); });
        case kMod: return binary(out, a, b, n, [](float x, float y) { const float r = std::fmod(x, y); return r != 0.0f && (r < 0.0f) != (y < 0.0f) ? r + y : r; });
        case kLt: return binary(out, a, b, n, [](float x, float y) { return x < y ? 1.0f : 0.0f; });
        case kLe: return binary(out, a, b, n, [](float x, float y) { return x <= y ? 1.0f : 0.0f; });
        case kGt: return binary(out, a, b, n, [](float x, float y) { return x > y ? 1.0f : 0.0f; });
        case kGe: return binary(out, a, b, n, [](float x, float y) { return x >= y ? 1.0f : 0.0f; });
        case kEq: return binary(out, a, b, n, [](float x, float y) { return x == y ? 1.0f : 0.0f; });
        case kNe: return binary(out, a, b, n, [](float x, float y) { return x != y ? 1.0f : 0.0f; });
        case kMin: return binary(out, a, b, n, smaller);
        case kMax: return binary(out, a, b, n, larger);
        case kNeg: return unary(out, a, n, [](float x) { return -x; });
        case kAbs: return unary(out, a, n, [](float x) { return std::fabs(x); });
        case kSign: return unary(out, a, n, [](float x) { return static_cast<float>((x > 0.0f) - (x < 0.0f)); });
        case kSquare: return unary(out, a, n, [](float x) { return x * x; });
        case kSqrt: return unary(out, a, n, [](float x) { return std::sqrt(x); });
        case kRsqrt: return unary(out, a, n, [](float x) { return 1.0f / std::sqrt(x); });
        case kReciprocal: return unary(out, a, n, [](float x) { return 1.0f / x; });
        case kExp: return unary(out, a, n, [](float x) { return exponential(x); });
        case kLog: return unary(out, a, n, [](float x) { return logarithm(x); });
        case kTanh: return unary(out, a, n, [](float x) { return hyperbolic_tangent(x); });
        case kSigmoid: return unary(out, a, n, [](float x) { return 1.0f / (1.0f + exponential(-x)); });
        case kNumber: return unary(out, a, n, [](float x) { return x; });
        case kLerp:
            if (c.number) {
                const float w = *c.at;
                if (std::fabs(w) < 0.5f) return binary(out, a, b, n, [w](float x, float y) { return x + w * (y - x); });
                return binary(out, a, b, n, [w](float x, float y) { return y - (y - x) * (1.0f - w); });
            }
            for (int64_t i = 0; i < n; ++i) out[i] = lerp(get(a, i), get(b, i), get(c, i));
            return;
        case kClip:
            if (b.number && c.number) {
                const float low = *b.at, high = *c.at;
                unary(out, a, n, [low](float x) { return larger(x, low); });  // both in one are not made vector code
                for (int64_t i = 0; i < n; ++i) out[i] = smaller(out[i], high);
                return;
            }
            for (int64_t i = 0; i < n; ++i) out[i] = smaller(larger(get(a, i), get(b, i)), get(c, i));
            return;
        case kWhere:
            for (int64_t i = 0; i < n; ++i) out[i] = get(a, i) != 0.0f ? get(b, i) : get(c, i);
            return;
    }
}

// Adds up f(x) in sixteen strands, so that it is fast and the order is always the same.
template <class F>
inline double total(const float* x, int64_t n, F f) {
    float strands[16] = {};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int64_t j = 0; j < 16; ++j) strands[j] += f(x[i + j]);
    double sum = 0.0;
    for (float strand : strands) sum += strand;
    for (; i < n; ++i) sum += f(x[i]);
    return sum;
}

// The reductions, in the order of `REDUCTIONS` in discover/native_code.py.
enum Reduction : int32_t { kSum, kMean, kNorm, kLargest, kSize, kGlobalSum, kGlobalLargest };

inline bool is_largest(int32_t reduction) { return reduction == kLargest || reduction == kGlobalLargest; }
inline bool is_global(int32_t reduction) { return reduction >= kGlobalSum; }

// Takes a block of n into a reduction; a scalar of the segment counts once, with its first block.
inline void reduce(int32_t reduction, double& into, Operand x, int64_t n, bool first) {
    if (x.number) {
        if (!first) return;
        n = 1;
    }
    if (is_largest(reduction)) {
        for (int64_t i = 0; i < n; ++i) into = (x.at[i] > into || x.at[i] != x.at[i]) ? x.at[i] : into;
    } else if (reduction == kNorm) {
        into += total(x.at, n, [](float v) { return v * v; });
    } else if (reduction == kSize) {
        into += static_cast<double>(n);
    } else {
        into += total(x.at, n, [](float v) { return v; });
    }
}

inline float finished(int32_t reduction, double value, int64_t size) {
    if (reduction == kMean) return static_cast<float>(value / static_cast<double>(size));
    if (reduction == kNorm) return static_cast<float>(std::sqrt(value));
    return static_cast<float>(value);
}

constexpr int kScalars = 64;

}  // namespace

extern "C" {

// One step of every lane.
//
// code: all programs', program j's from starts[j]. It begins with 1 if the program treats all parameters as one, and the
//   number of its phases; a phase is: count and words of its instructions, count and (reduction, operand, scalar) of its
//   reductions, count and words of what is computed from their results. The last phase has no reductions; after it,
//   1 + slots operands say what becomes the new p and slots (INT32_MIN: unchanged). Registers 0 and 1 are p and g, 2 to
//   1 + slots the slots. An operand -1 - k is number k, and from `width` on scalar k - width of the segment.
// programs: of each lane. parameters, gradients: [lanes, n]. state: [slots, rows, n], of which lanes are stepped.
// bounds: where the `segments` parameters begin in a lane, and n.
// numbers: of each lane, `width` of them.
void step(const int32_t* code, const int64_t* starts, const int32_t* programs, const int64_t* bounds, int64_t lanes,
          int64_t rows, int64_t n, int64_t slots, int64_t width, int64_t segments, float* parameters, const float* gradients,
          float* state, const float* numbers) {
    alignas(64) static thread_local float registers[kRegisters][kBlock];
    static thread_local std::vector<std::array<float, kScalars>> kept_scalars;
    static thread_local std::vector<std::array<double, kScalars>> kept_sums;
    if (static_cast<int64_t>(kept_scalars.size()) < segments) {
        kept_scalars.resize(segments);
        kept_sums.resize(segments);
    }
    auto* const scalars = kept_scalars.data();
    auto* const sums = kept_sums.data();
    for (int64_t lane = 0; lane < lanes; ++lane) {
        const float* mine = numbers + lane * width;
        const int32_t* at = code + starts[programs[lane]];
        const bool whole = *at++ != 0;
        const int64_t parts = whole ? 1 : segments;
        auto begin = [&](int64_t part) { return whole ? 0 : bounds[part]; };
        auto end = [&](int64_t part) { return whole ? n : bounds[part + 1]; };
        auto place = [&](int64_t slot, int64_t from) { return state + (slot * rows + lane) * n + from; };
        auto operand = [&](int32_t index, int64_t part, int64_t from) -> Operand {
            if (index < 0) {
                const int64_t k = -1 - static_cast<int64_t>(index);
                return {k < width ? mine + k : &scalars[part][k - width], true};
            }
            if (index == 0) return {parameters + lane * n + from, false};
            if (index == 1) return {gradients + lane * n + from, false};
            if (index < 2 + slots) return {place(index - 2, from), false};
            return {registers[index - 2 - slots], false};
        };
        for (int32_t phase = *at++; phase > 0; --phase) {
            const int32_t instructions = *at++;
            const int32_t* words = at;
            at += instructions * kWords;
            const int32_t reductions = *at++;
            const int32_t* reduced = at;
            at += reductions * 3;
            const int32_t afterwards = *at++;
            const int32_t* later = at;
            at += afterwards * kWords;
            const int32_t* stores = at;
            for (int64_t part = 0; part < parts; ++part) {
                for (int32_t r = 0; r < reductions; ++r)
                    sums[part][r] = is_largest(reduced[3 * r]) ? -INFINITY : 0.0;
                for (int64_t from = begin(part); from < end(part); from += kBlock) {
                    const int64_t count = std::min(kBlock, end(part) - from);
                    for (int32_t i = 0; i < instructions; ++i) {
                        const int32_t* word = words + i * kWords;
                        run(word, registers[word[1] - 2 - slots], operand(word[2], part, from),
                            operand(word[3], part, from), operand(word[4], part, from), count);
                    }
                    for (int32_t r = 0; r < reductions; ++r)
                        reduce(reduced[3 * r], sums[part][r], operand(reduced[3 * r + 1], part, from), count,
                               from == begin(part));
                    if (phase > 1) continue;
                    for (int64_t slot = -1; slot < slots; ++slot) {
                        const int32_t stored = stores[1 + slot];
                        if (stored == INT32_MIN) continue;
                        float* to = slot < 0 ? parameters + lane * n + from : place(slot, from);
                        const Operand value = operand(stored, part, from);
                        if (value.number) std::fill(to, to + count, *value.at);
                        else if (value.at != to) std::memcpy(to, value.at, count * sizeof(float));
                    }
                }
            }
            for (int32_t r = 0; r < reductions; ++r) {
                const int32_t reduction = reduced[3 * r];
                double joined = is_largest(reduction) ? -INFINITY : 0.0;
                for (int64_t part = 0; part < parts; ++part) {
                    const double value = sums[part][r];
                    if (reduction == kGlobalSum) joined += value;
                    else if (value > joined || value != value) joined = value;
                }
                for (int64_t part = 0; part < parts; ++part)
                    scalars[part][reduced[3 * r + 2]] =
                        finished(reduction, is_global(reduction) ? joined : sums[part][r], end(part) - begin(part));
            }
            for (int64_t part = 0; part < parts; ++part)
                for (int32_t i = 0; i < afterwards; ++i) {
                    const int32_t* word = later + i * kWords;
                    run(word, &scalars[part][word[1]], operand(word[2], part, 0), operand(word[3], part, 0),
                        operand(word[4], part, 0), 1);
                }
        }
    }
}
}
