// Counts what the library allocates while it computes. Knows the C interface; never a result.
//
// `allocations LIBRARY` opens the library as it is installed. This program's malloc and `new` come before the C and C++
// libraries' for all that it loads; what returns into the library was asked for by it. The OpenMP runtime's own are not
// counted: libgomp's malloc a team for every parallel region of one thread.
#include <dlfcn.h>
#include <errno.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <vector>

#include "../../kimi_serve/kernels/csrc/kimi_kernels.h"

namespace {

std::atomic<long> seen{0};
std::atomic<const void*> base{nullptr};  // where the library lies

void notice(const void* caller) {
    Dl_info found;
    if (base && dladdr(caller, &found) && found.dli_fbase == base) ++seen;
}

}  // namespace

extern "C" {

void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

void* malloc(size_t size) {
    notice(__builtin_return_address(0));
    return __libc_malloc(size);
}
void* calloc(size_t count, size_t size) {
    notice(__builtin_return_address(0));
    return __libc_calloc(count, size);
}
void* realloc(void* old, size_t size) {
    notice(__builtin_return_address(0));
    return __libc_realloc(old, size);
}
void* aligned_alloc(size_t alignment, size_t size) {
    notice(__builtin_return_address(0));
    return __libc_memalign(alignment, size);
}
int posix_memalign(void** to, size_t alignment, size_t size) {
    notice(__builtin_return_address(0));
    *to = __libc_memalign(alignment, size);
    return *to ? 0 : ENOMEM;
}
}

void* operator new(size_t size) {
    notice(__builtin_return_address(0));
    return __libc_malloc(size);
}
void* operator new[](size_t size) {
    notice(__builtin_return_address(0));
    return __libc_malloc(size);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }

namespace {

constexpr int64_t kHidden = 256, kBetween = 128, kExperts = 8, kTopK = 2, kHeads = 2, kWidth = 64;
constexpr int kAgain = 20;
const int64_t kTokens[] = {1, 5, 40};  // a panel of one, a narrow one, and wide ones

void* library;
long first, later;

template <typename Function>
Function* find(const char* name) {
    auto* function = reinterpret_cast<Function*>(dlsym(library, name));
    if (!function) {
        std::printf("no %s\n", name);
        std::exit(1);
    }
    return function;
}

// The first call of a size may allocate, and no later one.
template <typename Call>
void count(const char* name, int64_t tokens, const Call& call) {
    auto* compute = find<int(const Call*)>(name);
    for (int i = 0; i <= kAgain; ++i) {
        const long before = seen;
        const int status = compute(&call);
        (i ? later : first) += seen - before;
        if (status) {
            std::printf("%s of %d tokens: status %d\n", name, static_cast<int>(tokens), status);
            std::exit(1);
        }
    }
}

struct Form {
    int64_t format, group, exact;
};

kimi_matrix matrix(const Form& form, int64_t rows, int64_t columns, const void* zeros) {
    kimi_matrix made{};
    made.rows = rows, made.columns = columns, made.format = form.format, made.group = form.group, made.exact = form.exact;
    made.weights = made.scales = zeros;
    return made;
}

kimi_experts_call experts(const Form& form, int64_t tokens, int64_t top_k, int64_t among, const void* zeros, void* out) {
    kimi_experts_call call{};
    call.tokens = tokens, call.top_k = top_k, call.experts = among, call.hidden = kHidden, call.intermediate = kBetween;
    call.format = form.format, call.group = form.group, call.exact = form.exact, call.id_bytes = 8, call.scale = 1.0;
    call.x = call.gate_up = call.gate_up_scales = call.down = call.down_scales = zeros;
    call.out = out;
    return call;
}

void count_all(const Form& form, int64_t tokens, const void* zeros, void* out, void* more) {
    kimi_linear_call linear{};
    linear.tokens = tokens, linear.heads = 1, linear.head_width = kHidden;
    linear.matrix = matrix(form, kHidden, kHidden, zeros), linear.x = zeros, linear.y = out;
    count("kimi_linear", tokens, linear);

    kimi_experts_call routed = experts(form, tokens, kTopK, kExperts, zeros, out);
    routed.ids = zeros, routed.routing = static_cast<const float*>(zeros);
    count("kimi_experts", tokens, routed);

    kimi_sparse_call sparse{};
    sparse.router = static_cast<const float*>(zeros);
    sparse.shared = experts(form, tokens, 1, 1, zeros, out);
    sparse.routed = experts(form, tokens, kTopK, kExperts, zeros, out);
    count("kimi_sparse", tokens, sparse);

    kimi_latent_call latent{};
    latent.tokens = tokens, latent.heads = kHeads, latent.nope = latent.rope = latent.value = kWidth / 2;
    latent.latent = kHidden, latent.limit = 1, latent.eps = 1e-6;
    latent.x = latent.turns = latent.norm = zeros, latent.positions = static_cast<const int64_t*>(zeros);
    latent.q = matrix(form, kHeads * kWidth, kHidden, zeros);
    latent.kv_a = matrix(form, kHidden + kWidth / 2, kHidden, zeros);
    latent.kv_b = matrix(form, kHeads * kWidth, kHidden, zeros);
    latent.query = out, latent.keys = more, latent.values = static_cast<char*>(more) + 4 * tokens * kHeads * kWidth;
    count("kimi_latent", tokens, latent);

    kimi_route_call route{};
    route.tokens = tokens, route.experts = kExperts, route.top_k = kTopK;
    route.logits = static_cast<const float*>(zeros);
    route.weights = static_cast<float*>(out), route.ids = static_cast<int32_t*>(more);
    count("kimi_route", tokens, route);

    kimi_norm_call norm{};
    norm.tokens = tokens, norm.columns = kHidden, norm.eps = 1e-5;
    norm.x = norm.weight = zeros, norm.y = out;
    count("kimi_norm", tokens, norm);
}

}  // namespace

int main(int, char** arguments) {
    library = dlopen(arguments[1], RTLD_NOW);
    if (!library) {
        std::printf("%s\n", dlerror());
        return 1;
    }
    Dl_info found;
    if (!dladdr(dlsym(library, "kimi_abi"), &found)) return 1;
    base = found.dli_fbase;
    const std::vector<char> zeros(4 * kExperts * 2 * kBetween * kHidden);
    std::vector<char> out(4 * kTokens[2] * kHidden), more(8 * kTokens[2] * kHeads * kWidth);
    const int paths = find<int()>("kimi_path_count")();
    for (int path = 0; path < paths; ++path) {
        if (find<int(int)>("kimi_choose_path")(path)) continue;
        for (const Form& form : {Form{KIMI_INT4, 32, 0}, Form{KIMI_INT4, 32, 1}, Form{KIMI_INT8, 0, 0}, Form{KIMI_BF16, 0, 1}})
            for (const int64_t tokens : kTokens) count_all(form, tokens, zeros.data(), out.data(), more.data());
    }
    std::printf("%ld %ld\n", first, later);
    return 0;
}
