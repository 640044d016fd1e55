// Group norm and layer norm. The statistics are means and sums of squared distances from them, never sums of squares,
// so that a large mean costs no digits. They are merged in an order that only the shapes determine.
#include "sid.cuh"

struct moments {
    float n, mean, squares; // squares: the sum of the squared distances from the mean
};

// The rule of Chan, Golub and LeVeque.
SID_DEVICE moments merge(moments a, moments b) {
    float n = a.n + b.n, distance = b.mean - a.mean, share = n > 0 ? b.n / n : 0;
    return {n, a.mean + distance * share, a.squares + b.squares + distance * distance * a.n * share};
}

SID_DEVICE moments warp_merge(moments m) {
    for (int mask = 16; mask; mask /= 2) {
        moments other = {shuffle_xor(m.n, mask), shuffle_xor(m.mean, mask), shuffle_xor(m.squares, mask)};
        m = merge(m, other);
    }
    return m;
}

// ---- group norm ----

// How a block's threads share a chunk: each has N channels of every `step`-th pixel, from `row` on. Where a pixel has
// more channels than the block has threads, this takes several passes, each over `width` channels from `first` on.
template <int N> struct layout {
    int first, width, channel, row, step;
    bool works;
};

template <int N> SID_DEVICE layout<N> layout_of(int channels, int first) {
    int columns = (channels - first) / N, thread = threadIdx.x;
    if (columns > SID_CU_THREADS) columns = SID_CU_THREADS;
    layout<N> l = {first, columns * N, first + thread % columns * N, thread / columns, SID_CU_THREADS / columns, false};
    l.works = l.row < l.step;
    return l;
}

// A thread's channels in their input: the index of the sample's first pixel, and the distance between pixels.
struct column {
    const void *data;
    i64 first;
    int stride;
};

SID_DEVICE column column_of(const sid_cu_group_norm &p, int sample, int channel) {
    i64 pixels = (i64)sample * p.pixels;
    if (channel < p.a_channels) return {p.a, pixels * p.a_stride + channel, p.a_stride};
    return {p.b, pixels * p.b_stride + channel - p.a_channels, p.b_stride};
}

SID_DEVICE i64 end_of(i64 first, int chunk, i64 pixels) { return first + chunk < pixels ? first + chunk : pixels; }

// Stores the means and squares of a thread's channels over its pixels of the chunk in mean[] and squares[], which are
// [step][width].
template <int N>
SID_DEVICE void channel_moments(const sid_cu_group_norm &p, const layout<N> &l, i64 first, i64 end, float *mean,
                                float *squares) {
    float shift[N], sum[N], square[N], x[N];
    column c = column_of(p, blockIdx.y, l.channel);
    int count = (int)((end - first - l.row + l.step - 1) / l.step);
    if (count < 0) count = 0;
    load_some<N>(shift, c.data, SID_T, c.first + first * c.stride); // close enough to the mean to lose no digits
    for (int k = 0; k < N; k++) sum[k] = square[k] = 0;
#pragma unroll 2
    for (int i = 0; i < count; i++) {
        load_some<N>(x, c.data, SID_T, c.first + (first + l.row + (i64)i * l.step) * c.stride);
        for (int k = 0; k < N; k++) {
            float distance = x[k] - shift[k];
            sum[k] += distance;
            square[k] += distance * distance;
        }
    }
    for (int k = 0; k < N; k++) {
        int place = l.row * l.width + l.channel - l.first + k;
        float distance = count ? sum[k] / count : 0;
        mean[place] = shift[k] + distance + (p.add ? p.add[(i64)blockIdx.y * p.add_stride + l.channel + k] : 0);
        squares[place] = square[k] - sum[k] * distance;
    }
}

// Returns what the pass's numbers add to a group, computed by a warp and the same for all its lanes.
template <int N>
SID_DEVICE moments pass_moments(const layout<N> &l, int from, int to, i64 pixels, const float *mean,
                                const float *squares) {
    moments m = {0, 0, 0};
    if (from < l.first) from = l.first;
    if (to > l.first + l.width) to = l.first + l.width;
    int wide = to - from;
    for (int i = threadIdx.x % SID_CU_WARP; i < wide * l.step; i += SID_CU_WARP) {
        int row = i / wide, place = row * l.width + from - l.first + i % wide;
        i64 count = (pixels - row + l.step - 1) / l.step;
        if (count > 0) m = merge(m, {(float)count, mean[place], squares[place]});
    }
    return warp_merge(m);
}

template <int N> SID_DEVICE void chunk_stats(const sid_cu_group_norm &p, float *mean, float *squares, moments *groups) {
    int channels = p.a_channels + p.b_channels, per = channels / p.groups, warp = threadIdx.x / SID_CU_WARP;
    i64 first = (i64)blockIdx.x * p.chunk, end = end_of(first, p.chunk, p.pixels);
    for (int done = 0; done < channels;) {
        layout<N> l = layout_of<N>(channels, done);
        if (l.works) channel_moments<N>(p, l, first, end, mean, squares);
        __syncthreads();
        for (int g = warp; g < p.groups; g += SID_CU_THREADS / SID_CU_WARP) {
            if ((g + 1) * per <= l.first || g * per >= l.first + l.width) continue;
            moments m = pass_moments<N>(l, g * per, (g + 1) * per, end - first, mean, squares);
            if (threadIdx.x % SID_CU_WARP == 0) groups[g] = g * per < l.first ? merge(groups[g], m) : m;
        }
        __syncthreads();
        done += l.width;
    }
    float *stats = p.stats + ((i64)blockIdx.y * p.chunks + blockIdx.x) * p.groups * 2;
    for (int g = threadIdx.x; g < p.groups; g += SID_CU_THREADS) {
        stats[2 * g] = groups[g].mean;
        stats[2 * g + 1] = groups[g].squares;
    }
}

SID_KERNEL(group_stats, sid_cu_group_norm, SID_CU_THREADS) {
    SID_SHARED(float, mean, SID_CU_THREADS *SID_CU_VECTOR);
    SID_SHARED(float, squares, SID_CU_THREADS *SID_CU_VECTOR);
    SID_SHARED(moments, groups, SID_CU_MAX_GROUPS);
    if (p.vector) chunk_stats<SID_CU_VECTOR>(p, mean, squares, groups);
    else chunk_stats<1>(p, mean, squares, groups);
}

// Computes the mean and 1 / deviation of every group of the sample from its chunks.
SID_DEVICE void merge_chunks(const sid_cu_group_norm &p, float *mean, float *inverse) {
    const float *stats = p.stats + (i64)blockIdx.y * p.chunks * p.groups * 2;
    int per = (p.a_channels + p.b_channels) / p.groups, lane = threadIdx.x % SID_CU_WARP;
    for (int g = threadIdx.x / SID_CU_WARP; g < p.groups; g += SID_CU_THREADS / SID_CU_WARP) {
        moments m = {0, 0, 0};
        for (int i = lane; i < p.chunks; i += SID_CU_WARP) {
            const float *s = stats + (i * p.groups + g) * 2;
            i64 first = (i64)i * p.chunk;
            m = merge(m, {(float)((end_of(first, p.chunk, p.pixels) - first) * per), s[0], s[1]});
        }
        m = warp_merge(m);
        if (lane == 0) {
            mean[g] = m.mean;
            inverse[g] = 1 / sqrtf(m.squares / m.n + p.eps);
        }
    }
}

template <int N> SID_DEVICE void apply(const sid_cu_group_norm &p, const float *mean, const float *inverse) {
    int channels = p.a_channels + p.b_channels, per = channels / p.groups;
    i64 first = (i64)blockIdx.x * p.apply_chunk, end = end_of(first, p.apply_chunk, p.pixels);
    for (int done = 0; done < channels;) {
        layout<N> l = layout_of<N>(channels, done);
        done += l.width;
        if (!l.works) continue;
        float factor[N], middle[N], shift[N], x[N];
        for (int k = 0; k < N; k++) {
            int channel = l.channel + k, g = channel / per;
            middle[k] = mean[g] - (p.add ? p.add[(i64)blockIdx.y * p.add_stride + channel] : 0);
            factor[k] = inverse[g] * p.scale[channel];
            shift[k] = p.shift[channel];
        }
        column c = column_of(p, blockIdx.y, l.channel);
#pragma unroll 2
        for (i64 pixel = first + l.row; pixel < end; pixel += l.step) {
            load_some<N>(x, c.data, SID_T, c.first + pixel * c.stride);
            for (int k = 0; k < N; k++) {
                x[k] = (x[k] - middle[k]) * factor[k] + shift[k];
                if (p.silu) x[k] = silu(x[k]);
            }
            store_some<N>(p.dst, SID_T, ((i64)blockIdx.y * p.pixels + pixel) * channels + l.channel, x);
        }
    }
}

SID_KERNEL(group_apply, sid_cu_group_norm, SID_CU_THREADS) {
    SID_SHARED(float, mean, SID_CU_MAX_GROUPS);
    SID_SHARED(float, inverse, SID_CU_MAX_GROUPS);
    merge_chunks(p, mean, inverse);
    __syncthreads();
    if (p.vector) apply<SID_CU_VECTOR>(p, mean, inverse);
    else apply<1>(p, mean, inverse);
}

// ---- layer norm: each warp reads a row three times, the second and the third time from the cache ----

template <int N> SID_DEVICE void normalize_row(const sid_cu_layer_norm &p, i64 row) {
    int lane = threadIdx.x % SID_CU_WARP;
    i64 src = row * p.src_stride, dst = row * p.dst_stride;
    float x[N], sum = 0, squares = 0;
    for (int i = lane * N; i < p.c; i += SID_CU_WARP * N) {
        load_some<N>(x, p.src, SID_T, src + i);
        for (int k = 0; k < N; k++) sum += x[k];
    }
    float mean = warp_sum(sum) / p.c;
    for (int i = lane * N; i < p.c; i += SID_CU_WARP * N) {
        load_some<N>(x, p.src, SID_T, src + i);
        for (int k = 0; k < N; k++) squares += (x[k] - mean) * (x[k] - mean);
    }
    float inverse = 1 / sqrtf(warp_sum(squares) / p.c + p.eps);
    for (int i = lane * N; i < p.c; i += SID_CU_WARP * N) {
        load_some<N>(x, p.src, SID_T, src + i);
        for (int k = 0; k < N; k++) x[k] = (x[k] - mean) * inverse * p.scale[i + k] + p.shift[i + k];
        store_some<N>(p.dst, SID_T, dst + i, x);
    }
}

SID_KERNEL(layer_norm, sid_cu_layer_norm, SID_CU_THREADS) {
    i64 row = (i64)blockIdx.x * (SID_CU_THREADS / SID_CU_WARP) + threadIdx.x / SID_CU_WARP;
    if (row >= p.rows) return;
    if (p.vector) normalize_row<SID_CU_VECTOR>(p, row);
    else normalize_row<1>(p, row);
}
