// The thread pool of pool.h: one atomic word says which job is open and how many workers are inside it.
//
// A worker joins a job by raising the count while the job is open; the caller closes the job when no chunk is
// left and waits only for those that joined. Sleeping and waking go through one mutex, taken on neither side
// while work flows.
#include "pool.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace deepfast {
namespace {

constexpr uint64_t kOpen = uint64_t{1} << 31;  // low half: open bit and the number of workers inside
constexpr uint64_t kInside = kOpen - 1;
// Longer than what lies between two ops of a pass, no longer: beside a busy neighbour 200 us cost 10 to 20 %, for
// who spins spends the time that the system grants, and alone they gained nothing that could be measured.
constexpr auto kSpin = std::chrono::microseconds(40);

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Spins until done() or for about kSpin; returns done().
template <class F>
bool spin(const F& done) {
    const auto end = std::chrono::steady_clock::now() + kSpin;
    do {
        for (int i = 0; i < 64; ++i) {
            if (done()) return true;
            pause();
        }
    } while (std::chrono::steady_clock::now() < end);
    return done();
}

}  // namespace

struct Pool::State {
    std::atomic<uint64_t> word{0};  // job number << 32 | open | inside
    std::atomic<int> next{0};
    std::atomic<int> sleeping{0};
    std::atomic<bool> waiting{false};
    std::atomic<bool> stop{false};
    Task task = nullptr;
    const void* context = nullptr;
    int chunks = 0;
    pid_t owner = getpid();
    std::mutex mutex;
    std::condition_variable wake, done;
    std::vector<std::thread> workers;

    void take_chunks(int worker) {
        for (int i = next.fetch_add(1); i < chunks; i = next.fetch_add(1)) task(context, i, worker);
    }

    bool join(uint64_t seen) {
        while ((seen & kOpen) != 0) {
            if (word.compare_exchange_weak(seen, seen + 1)) return true;
        }
        return false;
    }

    void leave() {
        const uint64_t left = word.fetch_sub(1) - 1;
        if ((left & kInside) == 0 && waiting.load()) {
            std::lock_guard<std::mutex> lock(mutex);
            done.notify_all();
        }
    }

    void work(int worker) {
        uint64_t last = 0;
        auto fresh = [&] { return stop.load() || (word.load() >> 32) != last; };
        while (true) {
            if (!spin(fresh)) {
                std::unique_lock<std::mutex> lock(mutex);
                sleeping.fetch_add(1);
                wake.wait(lock, fresh);
                sleeping.fetch_sub(1);
            }
            if (stop.load()) return;
            const uint64_t seen = word.load();
            last = seen >> 32;
            if (!join(seen)) continue;
            take_chunks(worker);
            leave();
        }
    }

    void wait_for_workers() {
        auto empty = [&] { return (word.load() & kInside) == 0; };
        if (spin(empty)) return;
        waiting.store(true);
        std::unique_lock<std::mutex> lock(mutex);
        done.wait(lock, empty);
        waiting.store(false);
    }
};

Pool::Pool(int threads) : state_(new State), threads_(threads) {
    try {
        for (int i = 1; i < threads; ++i) state_->workers.emplace_back([this, i] { state_->work(i); });
    } catch (...) {
        threads_ = static_cast<int>(state_->workers.size()) + 1;  // as many as the system gave
    }
}

Pool::~Pool() {
    if (state_->owner != getpid()) return;  // a forked child has no workers to join; its copy is left behind
    state_->stop.store(true);
    {
        std::lock_guard<std::mutex> lock(state_->mutex);
        state_->wake.notify_all();
    }
    for (auto& worker : state_->workers) worker.join();
    delete state_;
}

void Pool::run(int chunks, Task task, const void* context) {
    State& s = *state_;
    const bool forked = s.sleeping.load() > 0 && s.owner != getpid();
    if (chunks <= 1 || s.workers.empty() || forked) {
        for (int i = 0; i < chunks; ++i) task(context, i, 0);
        return;
    }
    s.task = task;
    s.context = context;
    s.chunks = chunks;
    s.next.store(0);
    const uint64_t job = (s.word.load() >> 32) + 1;
    s.word.store(job << 32 | kOpen);
    if (s.sleeping.load() > 0) {
        std::lock_guard<std::mutex> lock(s.mutex);
        s.wake.notify_all();
    }
    s.take_chunks(0);
    s.word.fetch_and(~kOpen);
    s.wait_for_workers();
}

}  // namespace deepfast
