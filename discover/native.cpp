// Steps many elementwise rules at once: one call for all lanes of a batch.
//
// A rule is a short code over registers that hold a block of elements each; a block stays in the first-level cache while
// the whole code runs over it, so memory is touched once a step, whatever the rule. There is nothing to compile for a new
// rule. Arithmetic is IEEE float32, operation by operation: no contraction, no reassociation.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr int64_t kBlock = 256;
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
inline float lerp(float a, float b, float w) { return std::fabs(w) < 0.5f ? a + w * (b - a) : b - (b - a) * (1.0f - w); }

// The operations, in the order of `OPERATIONS` in discover/native.py.
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
        case kMod: return binary(out, a, b, n, [](float x, float y) { return x - std::floor(x / y) * y; });
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
        case kExp: return unary(out, a, n, [](float x) { return std::exp(x); });
        case kLog: return unary(out, a, n, [](float x) { return std::log(x); });
        case kTanh: return unary(out, a, n, [](float x) { return std::tanh(x); });
        case kSigmoid: return unary(out, a, n, [](float x) { return 1.0f / (1.0f + std::exp(-x)); });
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
            for (int64_t i = 0; i < n; ++i) out[i] = smaller(larger(get(a, i), get(b, i)), get(c, i));
            return;
        case kWhere:
            for (int64_t i = 0; i < n; ++i) out[i] = get(a, i) != 0.0f ? get(b, i) : get(c, i);
            return;
    }
}

}  // namespace

extern "C" {

// One step of every lane.
//
// code: all programs' words, program j's from starts[j] to starts[j + 1]. Registers 0 and 1 are p and g, 2 to 1 + slots
//   the slots; the others hold what is computed.
// stores: for each program 1 + slots registers, whose blocks become the new p and slots; -1 leaves a slot as it is.
// programs: of each lane. parameters, gradients: [lanes, n]. state: [slots, lanes, n].
// numbers: of each lane, `width` of them.
void step(const int32_t* code, const int64_t* starts, const int32_t* stores, const int32_t* programs, int64_t lanes,
          int64_t n, int64_t slots, int64_t width, float* parameters, const float* gradients, float* state,
          const float* numbers) {
    alignas(64) static thread_local float registers[kRegisters][kBlock];
    for (int64_t lane = 0; lane < lanes; ++lane) {
        const int32_t program = programs[lane];
        const float* mine = numbers + lane * width;
        const int32_t* store = stores + program * (1 + slots);
        for (int64_t from = 0; from < n; from += kBlock) {
            const int64_t count = std::min(kBlock, n - from);
            auto place = [&](int64_t slot) { return state + (slot * lanes + lane) * n + from; };
            auto operand = [&](int32_t index) -> Operand {
                if (index < 0) return {mine - 1 - index, true};
                if (index == 0) return {parameters + lane * n + from, false};
                if (index == 1) return {gradients + lane * n + from, false};
                if (index < 2 + slots) return {place(index - 2), false};
                return {registers[index - 2 - slots], false};
            };
            for (int64_t at = starts[program]; at < starts[program + 1]; at += kWords) {
                const int32_t* word = code + at;
                run(word, registers[word[1] - 2 - slots], operand(word[2]), operand(word[3]), operand(word[4]), count);
            }
            for (int64_t slot = -1; slot < slots; ++slot) {
                const int32_t from_register = store[1 + slot];
                float* to = slot < 0 ? parameters + lane * n + from : place(slot);
                if (from_register == INT32_MIN) continue;
                const Operand value = operand(from_register);
                if (value.number) std::fill(to, to + count, *value.at);
                else if (value.at != to) std::memcpy(to, value.at, count * sizeof(float));
            }
        }
    }
}
}
