// Runs an elementwise rule on a few small fixed inputs in double precision, one operator after the other, as the reference
// (dsl/reference.py) does it: every operation here rounds as numpy rounds it, so results are the same bits. What IEEE
// arithmetic does not fix (exp, log, pow, ...) is left to numpy, which is called back.

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace {

constexpr int kWords = 5;  // operation, target register, three operands; an operand below 0 is number -1 - operand
constexpr int64_t kElements = 15;

// The operations, in the order of `OPERATIONS` in discover/probes.py.
enum Operation : int32_t {
    kAdd, kSub, kMul, kDiv, kNeg, kLt, kLe, kGt, kGe, kEq, kNe, kWhere, kAbs, kSign, kSquare, kSqrt, kRsqrt, kReciprocal,
    kMin, kMax, kClip, kLerp, kNumber, kSum, kMean, kNorm, kAmax, kGlobalSum, kGlobalAmax, kCalled
};

struct Operand {
    const double* at;
    bool number;
    double operator[](int64_t i) const { return number ? *at : at[i]; }
};

inline double smaller(double a, double b) { return (a < b || a != a) ? a : b; }
inline double larger(double a, double b) { return (a > b || a != a) ? a : b; }

template <class F>
inline void unary(double* out, Operand a, int64_t n, F f) {
    if (a.number) std::fill(out, out + n, f(*a.at));
    else for (int64_t i = 0; i < n; ++i) out[i] = f(a.at[i]);
}

template <class F>
inline void binary(double* out, Operand a, Operand b, int64_t n, F f) {
    if (a.number) for (int64_t i = 0; i < n; ++i) out[i] = f(*a.at, b[i]);
    else if (b.number) for (int64_t i = 0; i < n; ++i) out[i] = f(a.at[i], *b.at);
    else for (int64_t i = 0; i < n; ++i) out[i] = f(a.at[i], b.at[i]);
}

// As numpy adds up fifteen numbers that lie side by side.
template <class F>
inline double total(const double* x, F f) {
    double sum = ((f(x[0]) + f(x[1])) + (f(x[2]) + f(x[3]))) + ((f(x[4]) + f(x[5])) + (f(x[6]) + f(x[7])));
    for (int64_t i = 8; i < kElements; ++i) sum += f(x[i]);
    return sum;
}

inline double sum(const double* x) { return total(x, [](double v) { return v; }); }

inline double largest(const double* x) {
    double found = x[0];
    for (int64_t i = 1; i < kElements; ++i) found = larger(found, x[i]);
    return found;
}

// One value for each situation, in all its elements.
template <class F>
inline void reduce(double* out, Operand a, int64_t n, F f) {
    for (int64_t from = 0; from < n; from += kElements) std::fill(out + from, out + from + kElements, f(a.at + from));
}

void run(const int32_t* word, double* out, Operand a, Operand b, Operand c, int64_t n) {
    switch (static_cast<Operation>(word[0])) {
        case kAdd: return binary(out, a, b, n, [](double x, double y) { return x + y; });
        case kSub: return binary(out, a, b, n, [](double x, double y) { return x - y; });
        case kMul: return binary(out, a, b, n, [](double x, double y) { return x * y; });
        case kDiv: return binary(out, a, b, n, [](double x, double y) { return x / y; });
        case kLt: return binary(out, a, b, n, [](double x, double y) { return x < y ? 1.0 : 0.0; });
        case kLe: return binary(out, a, b, n, [](double x, double y) { return x <= y ? 1.0 : 0.0; });
        case kGt: return binary(out, a, b, n, [](double x, double y) { return x > y ? 1.0 : 0.0; });
        case kGe: return binary(out, a, b, n, [](double x, double y) { return x >= y ? 1.0 : 0.0; });
        case kEq: return binary(out, a, b, n, [](double x, double y) { return x == y ? 1.0 : 0.0; });
        case kNe: return binary(out, a, b, n, [](double x, double y) { return x != y ? 1.0 : 0.0; });
        case kMin: return binary(out, a, b, n, smaller);
        case kMax: return binary(out, a, b, n, larger);
        case kNeg: return unary(out, a, n, [](double x) { return -x; });
        case kAbs: return unary(out, a, n, [](double x) { return std::fabs(x); });
        case kSign: return unary(out, a, n, [](double x) { return x > 0.0 ? 1.0 : x < 0.0 ? -1.0 : x == 0.0 ? 0.0 : x; });
        case kSquare: return unary(out, a, n, [](double x) { return x * x; });
        case kSqrt: return unary(out, a, n, [](double x) { return std::sqrt(x); });
        case kRsqrt: return unary(out, a, n, [](double x) { return 1.0 / std::sqrt(x); });
        case kReciprocal: return unary(out, a, n, [](double x) { return 1.0 / x; });
        case kNumber: return unary(out, a, n, [](double x) { return x; });
        case kWhere:
            for (int64_t i = 0; i < n; ++i) out[i] = a[i] != 0.0 ? b[i] : c[i];
            return;
        case kClip:
            for (int64_t i = 0; i < n; ++i) out[i] = smaller(larger(a[i], b[i]), c[i]);
            return;
        case kLerp:
            if (!a.number && !b.number && c.number) {
                const double w = *c.at;
                return binary(out, a, b, n, [w](double x, double y) { return x + w * (y - x); });
            }
            for (int64_t i = 0; i < n; ++i) out[i] = a[i] + c[i] * (b[i] - a[i]);
            return;
        case kSum: return reduce(out, a, n, sum);
        case kMean: return reduce(out, a, n, [](const double* x) { return sum(x) / static_cast<double>(kElements); });
        case kNorm:
            return reduce(out, a, n, [](const double* x) { return std::sqrt(total(x, [](double v) { return v * v; })); });
        case kGlobalSum: return reduce(out, a, n, [](const double* x) { return sum(x) + sum(x); });
        case kAmax:
        case kGlobalAmax: return reduce(out, a, n, largest);
        case kCalled: return;
    }
}

}  // namespace

extern "C" {

// Steps one rule in some situations side by side.
//
// code: `count` instructions. Registers of `situations` x 15 doubles: 0 is p, 1 is g, then the slots, whose initial values
//   the caller has written, then temporaries.
// stores: what becomes the new p and each slot, as operands. numbers: of each row `width`
//   values, at each step one; an operand below 0 reads row rows[-1 - operand].
// start: p at first. gradients, updates: [steps, situations, 15]; an update is old p - new p.
// descent: -1: p goes where the rule takes it. Else p is put back before each step, but for this situation, which stands at
//   `point`: its gradient is curvature * point, and the point goes a tenth of its size along the update.
// called: does instruction i, of kind kCalled, with the numbers of a step.
void probe(const int32_t* code, int64_t count, const int32_t* stores, int64_t slots, const int32_t* rows,
           const double* numbers, int64_t width, int64_t steps, int64_t situations, const double* start,
           const double* gradients, double* registers, double* updates, int64_t descent, const double* curvature,
           double* point, void (*called)(int64_t, int64_t)) {
    const int64_t n = situations * kElements;
    double* const p = registers;
    double* const g = registers + n;
    double fresh[8 * 16 * kElements];
    std::copy(start, start + n, p);
    for (int64_t step = 0; step < steps; ++step) {
        auto operand = [&](int32_t index) -> Operand {
            return index < 0 ? Operand{numbers + rows[-1 - index] * width + step, true} : Operand{registers + index * n, false};
        };
        std::copy(gradients + step * n, gradients + (step + 1) * n, g);
        if (descent >= 0) {
            std::copy(start, start + n, p);
            std::copy(point, point + kElements, p + descent * kElements);
            for (int64_t i = 0; i < kElements; ++i) g[descent * kElements + i] = curvature[i] * point[i];
        }
        for (int64_t i = 0; i < count; ++i) {
            const int32_t* word = code + i * kWords;
            if (word[0] == kCalled) called(i, step);
            else run(word, registers + word[1] * n, operand(word[2]), operand(word[3]), operand(word[4]), n);
        }
        for (int64_t k = 0; k <= slots; ++k) unary(fresh + k * n, operand(stores[k]), n, [](double x) { return x; });
        double* update = updates + step * n;
        for (int64_t i = 0; i < n; ++i) update[i] = p[i] - fresh[i];
        std::copy(fresh, fresh + n, p);
        std::copy(fresh + n, fresh + (1 + slots) * n, registers + 2 * n);
        if (descent >= 0) {
            const double* along = update + descent * kElements;
            const double size = std::sqrt(total(along, [](double v) { return v * v; }) / static_cast<double>(kElements));
            for (int64_t i = 0; i < kElements; ++i) point[i] -= 0.1 * (size > 0 ? along[i] / size : along[i]);
        }
    }
}
}
