// `quantile` on the CPU. Magnitudes are counted by their first eleven bits, those that share the
// wanted ones are gathered, and so on with the next bits. A row is made twice, in the L1 cache,
// which takes less time than to store it. Counts and keys are whole numbers: no order of additions
// changes the result.
#include <algorithm>
#include <memory>
#include <vector>

#include "../../cpu/row_chunks.h"
#include "checks.h"
#include "keys.h"

namespace diffast::cpu {
namespace {

constexpr int64_t kPart = 1 << 17;  // elements of a sample that a thread takes at most
constexpr int64_t kFew = 2048;      // so many keys are put in order by comparisons

// The digits of the order statistics `rank` and `rank + 1`, and how many numbers have lesser ones.
struct Found {
  int64_t digit, after;
  int64_t lesser;
};

Found find(const uint32_t* counts, int tables, int64_t rank) {
  Found found = {0, 0, 0};
  int64_t sum = 0;
  bool placed = false;
  for (int64_t digit = 0; digit < kDigits; ++digit) {
    int64_t count = 0;
    for (int t = 0; t < tables; ++t) count += counts[t * kDigits + digit];
    sum += count;
    if (!placed && sum > rank) {
      placed = true;
      found = {digit, digit, sum - count};
    }
    if (placed && sum > rank + 1) {
      found.after = digit;
      return found;
    }
  }
  return found;  // `rank` is the last one
}

template <typename T>
struct Neighbours {
  Key<T> below, above;
};

// The greatest key below `limit`, and the least of the others; there is one of each.
template <typename T>
Neighbours<T> around(const Key<T>* keys, int64_t count, Key<T> limit) {
  Neighbours<T> n = {0, Key<T>(~Key<T>(0))};
  for (int64_t i = 0; i < count; ++i) {
    if (keys[i] < limit)
      n.below = std::max(n.below, keys[i]);
    else
      n.above = std::min(n.above, keys[i]);
  }
  return n;
}

// The keys at `rank` and after it, of keys whose bits differ in the last `shift` bits at most.
// `keys` is put in another order.
template <typename T>
Neighbours<T> neighbours(Key<T>* keys, int64_t count, int64_t rank, int shift) {
  while (count > kFew && shift > 0) {
    shift = next_shift(shift);
    std::vector<uint32_t> counts(kDigits);
    const auto digit = [&](Key<T> key) { return int64_t(key >> shift) & (kDigits - 1); };
    for (int64_t i = 0; i < count; ++i) ++counts[digit(keys[i])];
    const Found found = find(counts.data(), 1, rank);
    if (found.after != found.digit) {
      const Key<T> prefix = keys[0] >> shift >> kDigitBits << kDigitBits;
      return around<T>(keys, count, (prefix + Key<T>(found.digit + 1)) << shift);
    }
    const auto other = [&](Key<T> key) { return digit(key) != found.digit; };
    count = std::remove_if(keys, keys + count, other) - keys;
    rank -= found.lesser;
  }
  std::nth_element(keys, keys + rank, keys + count);
  const Key<T> below = keys[rank];
  return {below, rank + 1 < count ? *std::min_element(keys + rank + 1, keys + count) : below};
}

// The rows of a thread's samples, chunk after chunk.
template <typename T>
class Rows {
 public:
  explicit Rows(const CombineArgs& a) : a_(a), chunk_(a, false), weights_(a, 0) {}

  // Calls visit(row, count) for the elements [begin, end) of a sample.
  template <typename Visit>
  void each(int64_t sample, int64_t begin, int64_t end, const Visit& visit) {
    if (sample != known_) weights_ = RowWeights<T>(a_, sample);
    known_ = sample;
    const bool plain = a_.inputs == 1 && weights_.value[0][0] == T(1);
    for (int64_t at = begin; at < end; at += kChunk) {
      const int64_t count = std::min(kChunk, end - at);
      chunk_.prepare(weights_, sample, at, count);
      if (!plain) chunk_.rows(weights_, 0, 1);
      visit(plain ? chunk_.column(0) : chunk_.result(0), count);
    }
  }

 private:
  const CombineArgs& a_;
  Chunk<T> chunk_;
  RowWeights<T> weights_;
  int64_t known_ = 0;
};

// What is sought in a sample: the keys [first, last], of which those below `limit` are at or before
// `rank`, and how many keys are lesser than `first`.
template <typename T>
struct Sought {
  Key<T> first, last, limit;
  int64_t lesser;
  bool split;  // the order statistic after `rank` has other first digits
  bool may_be_nan;
};

template <typename T>
Sought<T> seek(const uint32_t* counts, int64_t rank) {
  constexpr int shift = kKeyBits<T> - kDigitBits;
  const Found found = find(counts, kTallies, rank);
  uint32_t special = 0;
  for (int t = 0; t < kTallies; ++t)
    for (int64_t digit = kInfinityKey<T> >> shift; digit < kDigits; ++digit)
      special += counts[t * kDigits + digit];
  const auto least = [](int64_t digit) { return Key<T>(Key<T>(digit) << shift); };
  return {least(found.digit), Key<T>(least(found.after + 1) - 1), least(found.digit + 1),
          found.lesser,       found.after != found.digit,         special > 0};
}

template <typename T>
struct Work {
  const QuantileArgs& q;
  const Kernels& kernel = kernels();

  void count(Rows<T>& rows, int64_t sample, int64_t begin, int64_t end, uint32_t* counts) const {
    std::fill_n(counts, kTallies * kDigits, 0u);
    rows.each(sample, begin, end,
              [&](const T* row, int64_t count) { kernel.of<T>().tally({row, counts, count}); });
  }

  // Writes the keys [first, last] and returns how many there are.
  int64_t gather(Rows<T>& rows, int64_t sample, int64_t begin, int64_t end, Key<T> first,
                 Key<T> last, Key<T>* to) const {
    Key<T>* next = to;
    rows.each(sample, begin, end, [&](const T* row, int64_t count) {
      next += kernel.of<T>().gather({row, next, first, last, count});
    });
    return next - to;
  }

  // From the gathered keys to the sample's number.
  void finish(int64_t sample, const Sought<T>& sought, Key<T>* keys, int64_t count) const {
    const int64_t rank = q.rank - sought.lesser;
    const Neighbours<T> n = sought.split
                                ? around<T>(keys, count, sought.limit)
                                : neighbours<T>(keys, count, rank, kKeyBits<T> - kDigitBits);
    q.out[sample] = between(magnitude_of<T>(n.below), magnitude_of<T>(n.above), q.weight);
  }

  void be_nan(int64_t sample) const { q.out[sample] = std::numeric_limits<double>::quiet_NaN(); }

  // A sample of few elements: all keys are gathered.
  void few(Rows<T>& rows, int64_t sample, Key<T>* keys) const {
    const int64_t count = q.rows.elements;
    gather(rows, sample, 0, count, 0, Key<T>(~Key<T>(0) >> 1), keys);
    if (*std::max_element(keys, keys + count) > kInfinityKey<T>) return be_nan(sample);
    const Neighbours<T> n = neighbours<T>(keys, count, q.rank, kKeyBits<T>);
    q.out[sample] = between(magnitude_of<T>(n.below), magnitude_of<T>(n.above), q.weight);
  }

  void one(Rows<T>& rows, int64_t sample, uint32_t* counts, Key<T>* keys) const {
    const int64_t elements = q.rows.elements;
    count(rows, sample, 0, elements, counts);
    const Sought<T> sought = seek<T>(counts, q.rank);
    if (sought.may_be_nan && has_nan(rows, sample, 0, elements, keys)) return be_nan(sample);
    finish(sample, sought, keys,
           gather(rows, sample, 0, elements, sought.first, sought.last, keys));
  }

  bool has_nan(Rows<T>& rows, int64_t sample, int64_t begin, int64_t end, Key<T>* keys) const {
    return gather(rows, sample, begin, end, kInfinityKey<T> + 1, Key<T>(~Key<T>(0) >> 1), keys) > 0;
  }

  // A thread takes whole samples.
  void whole_samples() const {
    const int64_t elements = q.rows.elements;
    share_out(q.rows.samples, std::max<int64_t>(1, kGrain / elements),
              [&](int64_t from, int64_t to) {
                Rows<T> rows(q.rows);
                const auto keys = std::make_unique_for_overwrite<Key<T>[]>(elements);
                std::vector<uint32_t> counts(elements > kFew ? kTallies * kDigits : 0);
                for (int64_t sample = from; sample < to; ++sample)
                  elements > kFew ? one(rows, sample, counts.data(), keys.get())
                                  : few(rows, sample, keys.get());
              });
  }

  // Several threads share a sample's parts, each with its own counts and its own place for keys.
  void parts_of_samples(int64_t parts) const {
    const int64_t samples = q.rows.samples, elements = q.rows.elements;
    const int64_t items = samples * parts, table = kTallies * kDigits;
    const auto counts = std::make_unique_for_overwrite<uint32_t[]>(items * table);
    const auto keys = std::make_unique_for_overwrite<Key<T>[]>(samples * elements);
    std::vector<Sought<T>> sought(samples);
    std::vector<int64_t> found(items);
    const auto each = [&](const auto& work) {
      share_out(items, 1, [&](int64_t from, int64_t to) {
        Rows<T> rows(q.rows);
        for (int64_t item = from; item < to; ++item) {
          const int64_t sample = item / parts, begin = item % parts * kPart;
          work(rows, item, sample, begin, std::min(begin + kPart, elements));
        }
      });
    };
    each([&](Rows<T>& rows, int64_t item, int64_t sample, int64_t begin, int64_t end) {
      count(rows, sample, begin, end, &counts[item * table]);
    });
    for (int64_t sample = 0; sample < samples; ++sample) {
      uint32_t* total = &counts[sample * parts * table];
      for (int64_t i = table; i < parts * table; ++i) total[i % table] += total[i];
      sought[sample] = seek<T>(total, q.rank);
    }
    // Where there may be a NaN, all that is not finite is looked at first.
    each([&](Rows<T>& rows, int64_t item, int64_t sample, int64_t begin, int64_t end) {
      const Sought<T>& s = sought[sample];
      Key<T>* to = &keys[sample * elements + begin];
      const bool nan = s.may_be_nan && has_nan(rows, sample, begin, end, to);
      found[item] = nan ? -1 : gather(rows, sample, begin, end, s.first, s.last, to);
    });
    for (int64_t sample = 0; sample < samples; ++sample) {
      Key<T>* own = &keys[sample * elements];
      int64_t count = 0;
      bool nan = false;
      for (int64_t part = 0; part < parts && !nan; ++part) {
        const int64_t size = found[sample * parts + part];
        nan = size < 0;
        if (!nan) std::copy_n(own + part * kPart, size, own + count);
        count += size;
      }
      nan ? be_nan(sample) : finish(sample, sought[sample], own, count);
    }
  }
};

template <typename T>
void run_typed(const QuantileArgs& q) {
  const int64_t parts = chunks_of(q.rows.elements, kPart);
  const Work<T> work = {q};
  parts == 1 ? work.whole_samples() : work.parts_of_samples(parts);
}

void run(const QuantileArgs& q, const Tensor&) {
  if (q.rows.samples == 0) return;
  q.rows.wide ? run_typed<double>(q) : run_typed<float>(q);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffast, CPU, m) { m.impl("quantile", TORCH_BOX(&quantile<run>)); }

}  // namespace diffast::cpu
