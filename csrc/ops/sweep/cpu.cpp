// `sweep` on the CPU. A span of a job's elements goes through all stages, with its state in the
// cache.
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <memory>

#include "../../core/row.h"
#include "../../cpu/chunks.h"
#include "checks.h"

namespace diffast::cpu {
namespace {

// A span has up to so many blocks of kChunk elements. Every stage reads other rows of memory, so
// long spans are faster; short spans give more threads something to do. Norms are added up block by
// block, so that the number of threads does not change their bits.
constexpr int64_t kBlocks = 4;

// From so many bytes in and out of one call on, points bypass the caches.
constexpr int64_t kStreamPoints = int64_t(16) << 20;

// Scratch memory of a span: its state and columns. Each array is a cache line longer than needed,
// so that not all of them start in the same cache set.
template <typename T>
struct WalkScratch {
  static constexpr int64_t kRun = kBlocks * kChunk + 64 / sizeof(T);
  alignas(64) T p[kRun];
  alignas(64) T anchor[kRun];
  alignas(64) T entry[kMaxEntries][kRun];
  alignas(64) T line_x0[kRun];
  alignas(64) T line_noise[kRun];
  alignas(64) T x0[kRun];
  alignas(64) T output[kMaxOutputs][kRun];
  alignas(64) T noise[kMaxNoises][kRun];
  alignas(64) T unused[kRun];  // stands in for points that are not written
};

template <typename T>
WalkScratch<T>& walk_scratch_of_thread() {
  alignas(64) static thread_local WalkScratch<T> scratch;
  return scratch;
}

// Elements [begin, begin + count) of one job.
template <typename T>
class Walk {
 public:
  Walk(const SweepArgs& args, int64_t job, int64_t begin, int64_t count, bool stream)
      : a_(args),
        kernel_(kernels()),
        stream_(stream),
        s_(walk_scratch_of_thread<T>()),
        job_(args.jobs[job]),
        rows_(args.walk + job * args.length),
        begin_(begin),
        count_(count) {
    for (int i = 0; i < a_.entries; ++i) entry_[i] = s_.entry[i];
  }

  // Runs the job for the span. Each block writes its share of the norms to a row of `partials`,
  // [blocks, length + 1].
  void run(double* partials) {
    start();
    for (int k = 0; k < job_.real; ++k) real(k, partials + k);
    for (int k = job_.real; k < job_.real + job_.tail; ++k) tail(k);
    if (job_.state_out >= 0) end(partials + job_.real);
  }

 private:
  int64_t bytes() const { return count_ * sizeof(T); }
  const T* x_row(int64_t q) const { return static_cast<const T*>(a_.x) + q * a_.elements + begin_; }
  T* point_row(int64_t q) const { return static_cast<T*>(a_.points) + q * a_.elements + begin_; }
  T* plane(int64_t state, int index) const {
    const int64_t row = state * sweep_planes(a_) + index;
    return static_cast<T*>(a_.states) + row * a_.elements + begin_;
  }
  const void* output_row(int i, int64_t q) const {
    return at(a_.output[i], a_.output_type[i], q * a_.elements + begin_);
  }
  T* anchor() const { return a_.parts ? s_.anchor : s_.p; }

  template <typename Work>
  void each_block(const Work& work) const {
    for (int64_t first = 0; first < count_; first += kChunk)
      work(first, std::min(kChunk, count_ - first));
  }

  // Makes the call over the whole span, block by block. Sums of squares go to `partials`, if it is
  // not null.
  void walk(const WalkCall<T>& whole, double* partials) const {
    each_block([&](int64_t first, int64_t count) {
      WalkCall<T> call = whole;
      for (int k = 0; k < call.columns; ++k) call.column[k] += first;
      for (int r = 0; r < call.rows; ++r) call.row[r] += first;
      // Prefetch this stage's next block, or after its last block the first block of the next
      // stage.
      if (first + kChunk < count_) {
        for (int k = 0; k < call.aheads; ++k)
          call.ahead[k] = here_[k] + (first + kChunk) * call.ahead_bytes[k];
      }
      call.p += first;
      call.x += first;
      call.point += first;
      call.count = count;
      const double squares = kernel_.of<T>().walk(call);
      if (partials) partials[first / kChunk * (a_.length + 1)] = squares;
    });
  }

  void start() {
    const int line = 2 + a_.entries;
    const int64_t in = job_.state_in;
    const auto begin_at = [&](T* to, int index) {
      if (job_.from >= 0)
        std::fill_n(to, count_, T(0));
      else
        memcpy(to, plane(in, index), bytes());
    };
    memcpy(s_.p, job_.from >= 0 ? x_row(job_.from) : plane(in, 0), bytes());
    if (a_.parts) memcpy(s_.anchor, job_.from >= 0 ? s_.p : plane(in, 1), bytes());
    for (int i = 0; i < a_.entries; ++i) begin_at(entry_[i], 2 + i);
    begin_at(s_.line_x0, line);
    begin_at(s_.line_noise, line + 1);
  }

  // Writes the columns of the anchor and of p; returns how many columns there are then.
  int place_columns(const T** column) const {
    int n = 0;
    if (a_.parts) column[n++] = s_.anchor;
    column[n++] = s_.p;
    return n;
  }

  int entry_columns(const T** column, int n) const {
    for (int i = a_.entries - 1; i >= 0; --i) column[n++] = entry_[i];
    return n;
  }

  int noise_columns(const T** column, int n, int64_t stage) {
    for (int m = 0; m < a_.noises; ++m) {
      const uint32_t word = uint32_t(stage) + (uint32_t(m) << kSlotShift);
      const uint64_t id = uint64_t(a_.ids[job_.sample]);
      each_block([&](int64_t at, int64_t count) {
        draw(kernel_, s_.noise[m] + at, count, begin_ + at, word, id, a_.seed);
      });
      column[n++] = s_.noise[m];
    }
    return n;
  }

  int output_columns(const T** column, int n, int64_t q) {
    for (int i = 0; i < a_.outputs; ++i) {
      const DType type = a_.output_type[i];
      const void* from = output_row(i, q);
      if (type == kNative<T>) {
        column[n++] = static_cast<const T*>(from);
        continue;
      }
      each_block([&](int64_t first, int64_t count) {
        widen(kernel_, type, at(from, type, first), s_.output[i] + first, count);
      });
      column[n++] = s_.output[i];
    }
    return n;
  }

  // Where the kept rows go: the new entry replaces the oldest one.
  void set_rows(T** row) const {
    int n = 0;
    if (a_.entries > 0) row[n++] = entry_[a_.entries - 1];
    if (a_.parts) row[n++] = s_.anchor;
    row[n] = s_.p;
  }

  void turn_entries() {
    if (a_.entries > 1) std::rotate(entry_, entry_ + a_.entries - 1, entry_ + a_.entries);
  }

  // What is added to a row for each unit of p - x.
  T change(int64_t stage, int r, int64_t q) const {
    return a_.slopes ? T(a_.changes[stage * (1 + sweep_made(a_)) + r] * a_.slopes[q]) : T(0);
  }

  // Makes the x0 estimate of n columns, in the scratch memory.
  void estimate(WalkCall<T> call, int64_t stage, int64_t q, int n) {
    T weight[kMaxWalkColumns];
    const double* from = a_.weights + stage * (1 + sweep_made(a_)) * sweep_columns(a_);
    for (int k = 0; k < n; ++k) weight[k] = T(from[k]);
    call.row[0] = s_.x0;
    call.point = s_.unused;
    call.weight = weight;
    call.change[0] = change(stage, 0, q);
    call.columns = n;
    call.rows = 1;
    call.aheads = 0;
    call.stream = false;
    walk(call, nullptr);
    if (a_.clamp) clamp(s_.x0);
  }

  void clamp(T* value) const {
    const T low = T(a_.low), high = T(a_.high);
    for (int64_t i = 0; i < count_; ++i) value[i] = clamp_to(value[i], low, high);
  }

  // Sets the line that a tail follows: the x0 estimate, and the noise that p then holds.
  void set_line(const SweepLine& line) {
    const T alpha = T(line.alpha), inverse = T(line.inverse);
    memcpy(s_.line_x0, s_.x0, bytes());
    for (int64_t i = 0; i < count_; ++i) s_.line_noise[i] = (s_.p[i] - alpha * s_.x0[i]) * inverse;
  }

  // Does stage k of the job. Writes the point if the job does, and the squares of p - x.
  void real(int k, double* partials) {
    const int64_t stage = int64_t(job_.first) + k, q = rows_[k];
    const int made = sweep_made(a_);
    WalkCall<T> call;
    int n = place_columns(call.column);
    n = output_columns(call.column, n, q);
    n = entry_columns(call.column, n);
    call.p = s_.p;
    call.x = x_row(q);
    call.stream = stream_ && job_.write;
    call.changes = a_.slopes != nullptr;
    look_ahead(&call, k);
    const bool last = k == job_.real - 1;
    if (last || a_.clamp) estimate(call, stage, q, n);
    if (last) set_line(a_.line[stage]);
    if (a_.clamp) call.column[n++] = s_.x0;
    n = noise_columns(call.column, n, stage);
    T weight[kMaxMade * kMaxWalkColumns];
    const double* from = a_.weights + (stage * (1 + made) + 1) * n;
    for (int i = 0; i < made * n; ++i) weight[i] = T(from[i]);
    for (int r = 0; r < made; ++r) call.change[r] = change(stage, r + 1, q);
    call.weight = weight;
    call.point = job_.write ? point_row(q) : s_.unused;
    call.columns = n;
    call.rows = made;
    set_rows(call.row);
    walk(call, partials);
    turn_entries();
  }

  // Notes what stage k reads and what the next stage will read.
  void look_ahead(WalkCall<T>* call, int k) {
    const int64_t q = rows_[k], next = rows_[std::min(k + 1, job_.real - 1)];
    call->aheads = 1 + a_.outputs;
    here_[0] = reinterpret_cast<const char*>(x_row(q));
    call->ahead[0] = x_row(next);
    call->ahead_bytes[0] = sizeof(T);
    for (int i = 0; i < a_.outputs; ++i) {
      here_[1 + i] = static_cast<const char*>(output_row(i, q));
      call->ahead[1 + i] = output_row(i, next);
      call->ahead_bytes[1 + i] = dtype_bytes(a_.output_type[i]);
    }
  }

  void tail(int k) {
    const int64_t stage = int64_t(job_.first) + k;
    const int made = sweep_made(a_), columns = sweep_tail_columns(a_);
    if (job_.write) memcpy(point_row(rows_[k]), s_.p, bytes());
    const SweepLine& line = a_.line[stage];
    const T alpha = T(line.alpha), sigma = T(line.sigma), gain = T(line.gain);
    for (int64_t i = 0; i < count_; ++i) {
      const T d = s_.line_x0[i];
      s_.x0[i] = d + gain * (s_.p[i] - (alpha * d + sigma * s_.line_noise[i]));
    }
    if (a_.clamp) clamp(s_.x0);
    RowsCall<T> call = {};
    int n = place_columns(call.x);
    n = entry_columns(call.x, n);
    call.x[n++] = s_.x0;
    noise_columns(call.x, n, stage);
    T weight[kMaxMade * kMaxWalkColumns];
    const double* from = a_.tails + stage * made * columns;
    for (int i = 0; i < made * columns; ++i) weight[i] = T(from[i]);
    call.weight = weight;
    call.columns = columns;
    call.rows = made;
    call.count = count_;
    set_rows(call.y);
    kernel_.of<T>().rows(call);
    turn_entries();
  }

  void end(double* partials) {
    const int64_t out = job_.state_out;
    if (job_.tail == 0) measure(plane(out, 0), partials);
    memcpy(plane(out, 0), s_.p, bytes());
    memcpy(plane(out, 1), anchor(), bytes());
    for (int i = 0; i < a_.entries; ++i) memcpy(plane(out, 2 + i), entry_[i], bytes());
    memcpy(plane(out, 2 + a_.entries), s_.line_x0, bytes());
    memcpy(plane(out, 3 + a_.entries), s_.line_noise, bytes());
  }

  // Adds up the squares of p - x, as a stage whose only row is dropped.
  void measure(const T* x, double* partials) const {
    WalkCall<T> call = {};
    const T weight = T(0);
    call.column[0] = call.p = s_.p;
    call.x = x;
    call.row[0] = call.point = s_.unused;
    call.weight = &weight;
    call.columns = call.rows = 1;
    walk(call, partials);
  }

  const SweepArgs& a_;
  const Kernels& kernel_;
  const bool stream_;
  WalkScratch<T>& s_;
  const SweepJob& job_;
  const int32_t* rows_;
  const int64_t begin_;
  const int64_t count_;
  const char* here_[kMaxAhead];  // what the current stage reads
  T* entry_[kMaxEntries];        // newest first
};

// Adds up the blocks in order, whichever threads made them; 0 where nothing was measured.
void finish(const SweepArgs& a, const double* partials, int64_t blocks) {
  const int64_t width = a.length + 1;
  for (int64_t j = 0; j < a.job_count; ++j) {
    const SweepJob& job = a.jobs[j];
    const int64_t measured = job.real + (job.state_out >= 0 && job.tail == 0 ? 1 : 0);
    double* norms = a.norms + j * width;
    std::fill_n(norms, width, 0.0);
    for (int64_t i = 0; i < blocks; ++i, partials += width)
      for (int64_t k = 0; k < measured; ++k) norms[k] = norms[k] + partials[k];
    for (int64_t k = 0; k < measured; ++k) norms[k] = one_nan(norms[k]);
  }
}

// Blocks of a span: as many as leave at least four spans for every thread.
int64_t blocks_of_span(int64_t all, int64_t jobs) {
  const int64_t wanted = 4 * int64_t(torch::stable::get_num_threads());
  int64_t blocks = std::min(kBlocks, all);
  while (blocks > 1 && jobs * chunks_of(all, blocks) < wanted) --blocks;
  return blocks;
}

bool bypasses_caches(const SweepArgs& a, int64_t stages) {
  int64_t bytes = 2 * (a.wide ? 8 : 4);
  for (int i = 0; i < a.outputs; ++i) bytes += dtype_bytes(a.output_type[i]);
  return a.points != a.x && bytes * stages * a.elements >= kStreamPoints;
}

template <typename T>
void run_typed(const SweepArgs& a) {
  const int64_t width = a.length + 1, blocks = chunks_of(a.elements, kChunk);
  const auto partials = std::make_unique_for_overwrite<double[]>(a.job_count * blocks * width);
  int64_t stages = 0;
  for (int64_t j = 0; j < a.job_count; ++j) stages += a.jobs[j].real + a.jobs[j].tail;
  const bool stream = bypasses_caches(a, stages);
  const int64_t together = blocks_of_span(blocks, a.job_count);
  const int64_t spans = chunks_of(blocks, together), span = together * kChunk;
  const auto work = [&](int64_t from, int64_t to) {
    for (int64_t item = from; item < to; ++item) {
      const int64_t job = item / spans, begin = item % spans * span;
      const int64_t count = std::min(span, a.elements - begin);
      const int64_t block = job * blocks + begin / kChunk;
      Walk<T>(a, job, begin, count, stream).run(&partials[block * width]);
    }
#if defined(__SSE2__)
    if (stream) _mm_sfence();
#endif
  };
  const int64_t items = a.job_count * spans;
  const int64_t average = std::max<int64_t>(1, stages * a.elements / items);
  const int64_t grain = a.noises > 0 ? kNoiseGrain : kGrain;
  share_out(items, std::max<int64_t>(1, grain / average), work);
  if (a.norms) finish(a, partials.get(), blocks);
}

void run(const SweepArgs& a, const Tensor&) {
  if (a.rows * a.elements == 0 || a.job_count == 0) {
    if (a.norms) std::fill_n(a.norms, a.job_count * (a.length + 1), 0.0);
  } else {
    a.wide ? run_typed<double>(a) : run_typed<float>(a);
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffast, CPU, m) { m.impl("sweep", TORCH_BOX(&sweep<run>)); }

}  // namespace diffast::cpu
