// A thread pool that runs one numbered set of chunks at a time: the caller works too, and whoever is free
// takes the next.
//
// In: a function and how many chunks. Out: all chunks done. A worker that the system has not scheduled is
// never waited for unless it is inside a chunk, so a busy neighbour slows the whole in proportion. Workers
// spin briefly between jobs, then sleep. After fork() the child has no workers and runs every chunk itself.
// Knows nothing about kernels.
#pragma once

namespace deepfast {

class Pool {
  public:
    using Task = void (*)(const void* context, int chunk, int worker);

    explicit Pool(int threads);  // starts threads - 1 workers, fewer if the system refuses
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return threads_; }

    // task(context, chunk, worker) for every chunk in [0, chunks); worker is in [0, threads()). One caller at
    // a time.
    void run(int chunks, Task task, const void* context);

    template <class F>
    void each(int chunks, const F& f) {
        run(
            chunks, [](const void* c, int chunk, int worker) { (*static_cast<const F*>(c))(chunk, worker); },
            &f);
    }

  private:
    struct State;
    State* state_;
    int threads_;
};

// [first, last) of chunk i when `total` things are cut into chunks of `size`.
struct Span {
    int first, last;
};
static inline int count_chunks(int total, int size) { return (total + size - 1) / size; }
static inline Span span_of(int i, int size, int total) {
    const int first = i * size;
    return {first, first + size < total ? first + size : total};
}

}  // namespace deepfast
