/* Joseph projection kernels (CUDA): sinograms, by planes that share a transaxial line, and list-mode events.

   The maths are those of petsim/projectors/numba_sinogram.py, whose notation is kept: P[s, k] is the image interpolated
   across a transaxial line at step s and axial voxel k, Q its second difference over k, C and D the single and double
   running sums over steps.

   Sinograms: a block works on one (view, radial), in tiles of steps whose P, or sums of it, fit its shared memory. Threads
   work on voxels k while a tile is filled, on planes while it is used, and on voxels again when it is added to the back
   projection. Planes of a segment lie side by side in the data, so neighboring threads take the same branches, read
   neighboring shared memory and write neighboring data. A value of the data belongs to one thread; only back projections
   need atomic additions, to the tile in shared memory and, once a voxel, step and line, to the image.

   List-mode: a thread works on one event, through the images of all doses that it belongs to.

   Precision: values are float. A position of a few hundred voxels would lose the last digits of its fraction as a float, and
   double arithmetic is 32 to 64 times slower on consumer devices. Doubles therefore set up a line only, and positions along
   it are fixed-point numbers: 64-bit integers in units of 2^-32 voxel, whose upper half is the voxel. Their sums are exact,
   and they need no conversion between floats and integers, which is slow too.

   Everything that a linear operator reads or adds to goes through `term`, in the same code for both directions, so that
   one is the transpose of the other.

   The macros below are all that is CUDA here. tests/petsim/cuda_host.h defines them for plain C++, where the tests compare
   the kernels with numba's. NVRTC compiles this file without any header. */

#ifndef KERNEL
#define KERNEL(name, Type) extern "C" __global__ void __launch_bounds__(256, 2) name(const __grid_constant__ Type g)
#define DEVICE static __device__ __forceinline__
#define SHARED __shared__
#define SHARED_ROWS(name) extern __shared__ float name[]
#define UNROLL _Pragma("unroll")
#define THREAD ((int)threadIdx.x)
#define THREADS ((int)blockDim.x)
#define BLOCK ((long long)blockIdx.x)
#define SYNC __syncthreads()
#define ATOMIC_ADD(address, value) atomicAdd(address, value)
#define ATOMIC_MAX(address, value) atomicMax(address, value)
#define BITS_TO_FLOAT(bits) __uint_as_float(bits)
#define FLOAT_TO_BITS(value) __float_as_int(value)
#endif

/* Layouts of these four are repeated as NumPy types in cuda.py. */

struct Grid {
    double voxel_mm[3], origin_mm[3];  // voxel size, center of the first voxel
    double support_mm;                 // 0: the whole grid
    int shape[3];
};

struct Tof {
    int bins;
    float width_mm, cut_mm;  // of a bin; where the kernel ends
    float cdf[11];           // x p(x^2) is the kernel's integral from 0 to x cuts; p's coefficients, highest power first
};

struct Sinogram {
    Grid grid;
    Tof tof;
    int planes, items;
    int tile;                 // steps in shared memory at once
    const double *ends;       // (lines, 4): x1, y1, x2, y2 in mm
    const long long *middle;  // (planes,): z of the LORs' middles, fixed-point voxels
    const int *climb;         // (planes,): z2 - z1, in units of 2^-CLIMB_BITS voxels
    const int *lanes;         // (LANES, items): planes with one |z2 - z1|, -1 for none; TOF only
    const float *image;       // (x, y, z), zero outside the support
    const float *expected;    // like data, or null; EM back projects data / expected
    float *data;              // (lines, bins, planes), to which forward projections are added
    float *back;              // (x, y, z), to which back projections are added
};

struct Listmode {
    Grid grid;
    Tof tof;
    long long events;
    int doses, first_dose;             // images here, at most DOSES; dose of the first
    const double *crystal_xy_mm;       // (crystals, 2)
    const double *ring_z_mm;           // (rings,)
    const unsigned short *address;     // (4, events): crystal 1, ring 1, crystal 2, ring 2
    const short *tof_bin;              // (events,), TOF only
    const unsigned char *event_doses;  // (events,): the event is in this many doses, from the first
    const float *weight, *background;  // (events,) and (doses, events), of the EM update
    float *images;                     // (doses, x, y, z), with PAD voxels on every side: zeros, axially the outermost ones
    float *values;                     // (doses, events)
    float *backs;                      // like images
};

enum {
    MAX_TILE = 64,  // of steps without TOF
    STEPS = 16,     // of a TOF tile, whose samples a thread keeps in registers
    LANES = 4,      // planes a thread works on with TOF, for which it computes the weights once
    DOSES = 4,      // images an event is projected through at once
    PAD = 2,        // one voxel that interpolation reads and one for rounding
    CLIMB_BITS = 18,
    SHARE_BITS = 24,
    STEP_BITS = 26  // of a step, in times at which a ray crosses a voxel; MAX_TILE of them just fit 32 bits
};

enum { FORWARD, BACK, EM };

constexpr float ROUNDING = 3e-6f;  // of the sums without TOF, as a fraction of a line's largest value; seen up to 2e-6

/* One term of a linear operator: weight x cell, or for the transpose, weight x value added to the cell. */
DEVICE float term(bool transpose, float *cell, float weight, float value)
{
    if (!transpose)
        return weight * *cell;
    ATOMIC_ADD(cell, weight * value);
    return 0.0f;
}

constexpr long long VOXEL = 4294967296LL;  // in the units of positions

/* From the center of an image's outermost planes to their outer faces, up to which they reach; a LOR in a face is inside. */
constexpr double FACE_VOXELS = -0.5 - 1e-6;
constexpr long long FACE = (long long)(FACE_VOXELS * VOXEL);

DEVICE long long fixed(double voxels) { return (long long)(voxels * VOXEL); }

DEVICE int voxel_of(long long position) { return (int)(position >> 32); }

/* `fraction` in units of 2^-32, in [0, 1). The bits are those of a float in [1, 2). */
DEVICE float unit_float(unsigned fraction) { return BITS_TO_FLOAT(0x3f800000u | fraction >> 9) - 1.0f; }

DEVICE float fraction_of(long long position) { return unit_float((unsigned)position); }

/* A direct conversion is as slow as double arithmetic. Small negative numbers come out as 0. */
DEVICE float to_float(long long i) { return (float)(int)(i >> 32) * VOXEL + (float)(unsigned)i; }

/* A float sum that keeps what rounding takes (Kahan, doi 10.1145/363707.363723). Plain, the double sums of a tile would be
   several times less accurate. */
struct Sum {
    float value, rest;
};

DEVICE void add(Sum &sum, float term)
{
    const float missing = term - sum.rest, value = sum.value + missing;
    sum.rest = (value - sum.value) - missing;
    sum.value = value;
}

DEVICE int clamp(int i, int low, int high) { return min(max(i, low), high); }

/* Integral of the TOF kernel from 0 to x cuts. */
DEVICE float tof_cdf(const Tof &tof, float x)
{
    x = fminf(fmaxf(x, -1.0f), 1.0f);
    const float y = x * x;
    float sum = tof.cdf[0];
    UNROLL
    for (int i = 1; i < 11; ++i)
        sum = sum * y + tof.cdf[i];
    return x * sum;
}

/* ---- Transaxial lines ---- */

struct Line {
    int along_x;           // steps follow voxels along x, or else y
    int first, last;       // steps that may see the image, half-open
    double start, pitch;   // step s lies start + s pitch mm along the line from its middle
    double other, slope;   // position across the steps' axis: other + s slope, voxels
    double chord;          // length in mm
};

/* Steps of first ... last - 1 with low < start + step x slope < high. */
DEVICE void clip(int &first, int &last, double start, double slope, double low, double high)
{
    if (slope == 0.0) {
        if (start <= low || start >= high)
            last = first;
        return;
    }
    const double a = (low - start) / slope, b = (high - start) / slope;
    // Limited as doubles: with a small slope they may not fit an integer.
    const double begin = first, end = last;
    first = (int)fmin(fmax(ceil(fmin(a, b)), begin), end);
    last = (int)fmin(fmax(floor(fmax(a, b)) + 1.0, begin), end);
}

/* The line between two points, with the steps that may see the image, at most `farthest` chords from the line's middle. */
DEVICE Line trace(const Grid &grid, double x1, double y1, double x2, double y2, double farthest)
{
    Line line;
    const double dx = x2 - x1, dy = y2 - y1, xm = 0.5 * (x1 + x2), ym = 0.5 * (y1 + y2);
    line.chord = sqrt(dx * dx + dy * dy);
    line.along_x = fabs(dx) >= fabs(dy);
    const int a = line.along_x ? 0 : 1, b = 1 - a;
    const double stretch = line.chord / (line.along_x ? dx : dy), across = (line.along_x ? dy : dx) / line.chord;
    line.pitch = grid.voxel_mm[a] * stretch;
    line.start = (grid.origin_mm[a] - (line.along_x ? xm : ym)) * stretch;
    line.slope = line.pitch * across / grid.voxel_mm[b];
    line.other = ((line.along_x ? ym : xm) + line.start * across - grid.origin_mm[b]) / grid.voxel_mm[b];
    line.first = 0;
    line.last = grid.shape[a];
    clip(line.first, line.last, line.start, line.pitch, -farthest * line.chord, farthest * line.chord);
    clip(line.first, line.last, line.other, line.slope, -1.0, (double)grid.shape[b]);
    if (grid.support_mm > 0.0) {
        // An interpolated sample sees voxels up to one voxel away, so the line is cut that much outside the support.
        const double radius = grid.support_mm + fmax(grid.voxel_mm[0], grid.voxel_mm[1]);
        const double distance = (x1 * y2 - x2 * y1) / line.chord, inside = radius * radius - distance * distance;
        const double middle = -(xm * dx + ym * dy) / line.chord, reach = sqrt(fmax(inside, 0.0));
        clip(line.first, line.last, line.start, line.pitch, middle - reach, middle + reach);
    }
    return line;
}

/* ---- Sinograms ---- */

/* Voxels that a step interpolates between: their columns' offsets in the image and weights. */
struct Step {
    int low, high;
    float low_weight, high_weight;
};

/* A distance along a line as a share of its chord: in 2^-SHARE_BITS of it, and what is left in 2^-SHARE_BITS of those. */
struct Share {
    int high, low;
};

DEVICE Share share_of(double chords)
{
    const double units = chords * (1 << SHARE_BITS), whole = floor(units);
    return {(int)whole, (int)((units - whole) * (1 << SHARE_BITS))};
}

/* How much a LOR climbs over a share of its chord, in fixed-point voxels. */
DEVICE long long climbed(int climb, const Share &share)
{
    const int bits = CLIMB_BITS + SHARE_BITS - 32;
    return ((long long)climb * share.high >> bits) + ((long long)climb * share.low >> (bits + SHARE_BITS));
}

/* Steps that a block works on at once. `along` is where the first of them lies along the line, from its middle. */
struct Tile {
    int count;
    Share along, pitch;
    float along_mm, pitch_mm, chord_mm;
};

DEVICE void start_tile(const Grid &grid, const Line &line, int first, int count, Tile &tile, Step *steps)
{
    if (THREAD == 0) {
        const double along = line.start + first * line.pitch;
        tile.count = count;
        tile.along = share_of(along / line.chord);
        tile.pitch = share_of(line.pitch / line.chord);
        tile.along_mm = (float)along;
        tile.pitch_mm = (float)line.pitch;
        tile.chord_mm = (float)line.chord;
    }
    const int voxels = grid.shape[line.along_x ? 1 : 0], ny = grid.shape[1], nz = grid.shape[2];
    for (int s = THREAD; s < count; s += THREADS) {
        const double position = line.other + (first + s) * line.slope;
        const double below = floor(position);
        const int j = (int)below, low = clamp(j, 0, voxels - 1), high = clamp(j + 1, 0, voxels - 1);
        const double share = position - below;
        steps[s].low = (line.along_x ? (first + s) * ny + low : low * ny + first + s) * nz;
        steps[s].high = (line.along_x ? (first + s) * ny + high : high * ny + first + s) * nz;
        // In double: beside the image one of them may be tiny for all of a line.
        steps[s].low_weight = j == low ? (float)(1.0 - share) : 0.0f;
        steps[s].high_weight = j + 1 == high ? (float)share : 0.0f;
    }
}

/* P at a step and axial voxel. */
DEVICE float sample(const float *image, const Step &step, int k, int nz)
{
    if (k < 0 || k >= nz)
        return 0.0f;
    return step.low_weight * image[step.low + k] + step.high_weight * image[step.high + k];
}

DEVICE void add_sample(float *image, const Step &step, int k, int nz, float value)
{
    if (k < 0 || k >= nz || value == 0.0f)
        return;
    if (step.low_weight != 0.0f)
        ATOMIC_ADD(&image[step.low + k], step.low_weight * value);
    if (step.high_weight != 0.0f)
        ATOMIC_ADD(&image[step.high + k], step.high_weight * value);
}

/* A plane's LOR in a tile: its position at the first step and its change a step, in fixed-point voxels, and its length over
   that of the transaxial line. */
struct Ray {
    long long start, slope;
    float stretch;
};

DEVICE Ray ray_of(const Sinogram &g, int plane, const Tile &tile)
{
    const int climb = g.climb[plane];
    const float slope_mm = (float)climb * (1.0f / (1 << CLIMB_BITS)) * (float)g.grid.voxel_mm[2] / tile.chord_mm;
    return {g.middle[plane] + climbed(climb, tile.along), climbed(climb, tile.pitch), sqrtf(1.0f + slope_mm * slope_mm)};
}

/* Time, in units of 2^-STEP_BITS steps, that it takes to climb a distance, at a speed a step.

   A float division, and another one of what it leaves. The products may exceed 64 bits, the small difference does not. */
DEVICE unsigned time_to_climb(long long distance, long long speed)
{
    const float inverse = 1.0f / to_float(speed);
    const unsigned time = (unsigned)(to_float(distance) * (float)(1 << STEP_BITS) * inverse);
    const unsigned long long left = ((unsigned long long)distance << STEP_BITS) - time * (unsigned long long)speed;
    return time + (int)(to_float((long long)left) * inverse);
}

/* Sum over a tile's steps of P along a ray, or the transpose for `value`.

   Rows of the tile hold voxels -1 ... nz: rows 0 ... count the double sums of Q, the last two C and D. */
DEVICE float plane_sum(bool transpose, float *rows, int tile, int count, int nz, const Ray &ray, float value)
{
    const int row = nz + 2;
    const long long end = ray.start + (count - 1) * ray.slope;
    const int begin = voxel_of(ray.start), last = voxel_of(end);
    const bool rising = ray.slope >= 0;
    const long long speed = rising ? ray.slope : -ray.slope;
    const float weight = to_float(speed) * (1.0f / VOXEL), slope = rising ? weight : -weight;
    float sum = 0.0f;
    if (last >= -1 && last < nz) {
        const float u = fraction_of(end) + slope;
        float *c = rows + (tile + 1) * row + last + 1, *d = c + row;
        sum += term(transpose, c, 1.0f - u, value);
        sum += term(transpose, c + 1, u, value);
        sum += term(transpose, d, slope, value);
        sum += term(transpose, d + 1, -slope, value);
    }
    // Voxels that the ray crosses between the first and the last step; the sums are zero outside the rows.
    const int low = max(min(begin, last) + 1, -1), high = min(max(begin, last), nz);
    if (low > high)
        return sum;
    const int nearest = rising ? low : high;
    const long long distance = nearest * VOXEL - ray.start;
    unsigned time = time_to_climb(rising ? distance : -distance, speed);
    const unsigned interval = low < high ? time_to_climb(VOXEL, speed) : 0;
    float *column = rows + nearest + 1;
    for (int n = low; n <= high; ++n) {
        float *cell = column + (int)(time >> STEP_BITS) * row;
        const float after = unit_float(time << (32 - STEP_BITS));
        sum += term(transpose, cell, weight * (1.0f - after), value);
        sum += term(transpose, cell + row, weight * after, value);
        time += interval;
        column += rising ? 1 : -1;
    }
    return sum;
}

/* What is added to the weight of an outermost plane at a position inwards of its center, in the voxel beyond it, where
   interpolation would let the image fade: to 1 up to the face, else to 0. */
DEVICE float edge_weight(long long inwards)
{
    return (inwards >= FACE ? to_float(-inwards) : -to_float(inwards + VOXEL)) * (1.0f / VOXEL);
}

/* Sum of these weights times the two outermost planes over a tile's steps, or the transpose. `edges` holds P there. */
DEVICE float edge_sum(bool transpose, float *edges, int count, int nz, const Ray &ray, float value)
{
    float sum = 0.0f;
    for (int edge = 0; edge < 2; ++edge) {
        long long inwards = edge ? (nz - 1) * VOXEL - ray.start : ray.start;
        const long long change = edge ? -ray.slope : ray.slope, end = inwards + (count - 1) * change;
        if ((inwards >= 0 && end >= 0) || (inwards <= -VOXEL && end <= -VOXEL))
            continue;
        for (int s = 0; s < count; ++s) {
            if (inwards < 0 && inwards > -VOXEL)
                sum += term(transpose, edges + edge * MAX_TILE + s, edge_weight(inwards), value);
            inwards += change;
        }
    }
    return sum;
}

/* Fill a tile without TOF from the image. */
DEVICE void integrate(const Sinogram &g, const Step *steps, float *rows, int count)
{
    const int nz = g.grid.shape[2], row = nz + 2;
    for (int i = THREAD; i < row; i += THREADS) {
        Sum c = {}, d = {}, cq = {}, dq = {};
        rows[i] = 0.0f;
        for (int s = 0; s < count; ++s) {
            const float below = sample(g.image, steps[s], i - 2, nz), here = sample(g.image, steps[s], i - 1, nz);
            const float above = sample(g.image, steps[s], i, nz);
            add(c, here);
            add(d, c.value);
            add(cq, below - 2.0f * here + above);
            add(dq, cq.value);
            rows[(s + 1) * row + i] = dq.value;
        }
        rows[(g.tile + 1) * row + i] = c.value;
        rows[(g.tile + 2) * row + i] = d.value;
    }
}

/* Transpose of `integrate`: add a tile to the back projection. */
DEVICE void differentiate(const Sinogram &g, const Step *steps, const float *rows, int count)
{
    const int nz = g.grid.shape[2], row = nz + 2;
    for (int k = THREAD; k < nz; k += THREADS) {
        const float *column = rows + k + 1;
        Sum c = {column[(g.tile + 1) * row], 0.0f}, d = {column[(g.tile + 2) * row], 0.0f};
        for (int s = count - 1; s >= 0; --s) {
            const float *cell = column + (s + 1) * row;
            add(d, cell[-1] - 2.0f * cell[0] + cell[1]);
            add(c, d.value);
            add_sample(g.back, steps[s], k, nz, c.value);
        }
    }
}

/* Value of the data to back project. */
DEVICE float value_of(const Sinogram &g, long long at)
{
    if (!g.expected)
        return g.data[at];
    const bool used = g.expected[at] > 0.0f && fabsf(g.data[at]) <= 3.402823466e38f;  // Not NaN, not infinite.
    return used ? g.data[at] / g.expected[at] : 0.0f;
}

/* Whether a line's data hold anything but zeros; the same answer for all threads. `any` is shared, and 0 before. */
DEVICE bool any_value(const Sinogram &g, long long begin, int count, int &any)
{
    for (int i = THREAD; i < count; i += THREADS)
        if (g.data[begin + i] != 0.0f)
            any = 1;
    SYNC;
    return any;
}

/* Zero what is below ROUNDING of the line's largest value: LORs beside the object would else get +-1e-7 of it.

   `largest` is shared, and 0 before; bits of positive floats sort as the floats do. */
DEVICE void drop_rounding(float *data, int planes, int &largest)
{
    float own = 0.0f;
    for (int p = THREAD; p < planes; p += THREADS)
        own = fmaxf(own, fabsf(data[p]));
    ATOMIC_MAX(&largest, FLOAT_TO_BITS(own));
    SYNC;
    const float least = BITS_TO_FLOAT((unsigned)largest) * ROUNDING;
    for (int p = THREAD; p < planes; p += THREADS)
        if (fabsf(data[p]) < least)
            data[p] = 0.0f;
}

/* Trace the block's line, and zero a shared number; false where the line misses the image. */
DEVICE bool start_line(const Sinogram &g, Line &line, int &zeroed)
{
    if (THREAD == 0) {
        zeroed = 0;
        const double *ends = g.ends + 4 * BLOCK;
        line = trace(g.grid, ends[0], ends[1], ends[2], ends[3], 1.0);
    }
    SYNC;
    return line.first < line.last;
}

/* One (view, radial) without TOF. */
DEVICE void project_plain(bool transpose, const Sinogram &g)
{
    SHARED int state;
    SHARED Line line;
    SHARED Tile tile;
    SHARED Step steps[MAX_TILE];
    SHARED float edges[2 * MAX_TILE];
    SHARED_ROWS(rows);
    const int nz = g.grid.shape[2], row = nz + 2;
    const long long begin = BLOCK * g.planes;
    if (!start_line(g, line, state) || (transpose && !any_value(g, begin, g.planes, state)))
        return;
    for (int first = line.first; first < line.last; first += g.tile) {
        const int count = min(g.tile, line.last - first);
        start_tile(g.grid, line, first, count, tile, steps);
        if (transpose)
            for (int i = THREAD; i < (g.tile + 3) * row; i += THREADS)
                rows[i] = 0.0f;
        SYNC;
        for (int i = THREAD; i < 2 * MAX_TILE; i += THREADS) {
            const int s = i % MAX_TILE, k = i < MAX_TILE ? 0 : nz - 1;
            edges[i] = transpose || s >= count ? 0.0f : sample(g.image, steps[s], k, nz);
        }
        if (!transpose)
            integrate(g, steps, rows, count);
        SYNC;
        for (int p = THREAD; p < g.planes; p += THREADS) {
            const Ray ray = ray_of(g, p, tile);
            const float length = fabsf(tile.pitch_mm) * ray.stretch;
            if (transpose) {
                const float value = length * value_of(g, begin + p);
                if (value != 0.0f) {
                    plane_sum(true, rows, g.tile, count, nz, ray, value);
                    edge_sum(true, edges, count, nz, ray, value);
                }
            } else {
                const float inner = plane_sum(false, rows, g.tile, count, nz, ray, 0.0f);
                g.data[begin + p] += length * (inner + edge_sum(false, edges, count, nz, ray, 0.0f));
            }
        }
        SYNC;
        if (transpose) {
            differentiate(g, steps, rows, count);
            for (int i = THREAD; i < 2 * MAX_TILE; i += THREADS)
                if (i % MAX_TILE < count)
                    add_sample(g.back, steps[i % MAX_TILE], i < MAX_TILE ? 0 : nz - 1, nz, edges[i]);
            SYNC;
        }
    }
    if (!transpose)
        drop_rounding(g.data + begin, g.planes, state);
}

/* Samples of a tile along the rays of an item's planes, or the transpose. */
DEVICE void shear(bool transpose, const Sinogram &g, float *rows, const Tile &tile, int item, float samples[STEPS][LANES])
{
    const int nz = g.grid.shape[2];
    UNROLL
    for (int m = 0; m < LANES; ++m) {
        const int plane = g.lanes[m * g.items + item];
        const Ray outside = {-2 * VOXEL, 0, 1.0f}, ray = plane < 0 ? outside : ray_of(g, plane, tile);
        long long position = ray.start;
        UNROLL
        for (int s = 0; s < STEPS; ++s) {
            const int k = voxel_of(position) + 1;
            const float above = fraction_of(position), value = transpose ? samples[s][m] : 0.0f;
            float sum = 0.0f;
            const bool inside = position >= FACE && position <= (nz - 1) * VOXEL - FACE;
            if (s < tile.count && inside && (!transpose || value != 0.0f)) {
                float *cell = rows + s * (nz + 2) + k;
                sum += term(transpose, cell, 1.0f - above, value);
                sum += term(transpose, cell + 1, above, value);
            }
            if (!transpose)
                samples[s][m] = sum;
            position += ray.slope;
        }
    }
}

/* LANES planes with one |z2 - z1|, hence with common TOF weights, in a tile. `begin` is the line's first value in the data.

   Rows of the tile hold P at voxels -1 ... nz, beside the image that of the outermost ones. */
DEVICE void project_lanes(bool transpose, const Sinogram &g, float *rows, const Tile &tile, int item, long long begin)
{
    int plane[LANES];
    UNROLL
    for (int m = 0; m < LANES; ++m)
        plane[m] = g.lanes[m * g.items + item];
    const float stretch = ray_of(g, plane[0], tile).stretch;
    const float width = g.tof.width_mm, cut = g.tof.cut_mm, half = 0.5f * (float)g.tof.bins;
    const float center = tile.along_mm * stretch, step = tile.pitch_mm * stretch, length = fabsf(step);
    const float end = center + step * (float)(tile.count - 1);
    const int first = clamp((int)floorf((fminf(center, end) - cut) / width + half), 0, g.tof.bins);
    const int last = clamp((int)ceilf((fmaxf(center, end) + cut) / width + half), 0, g.tof.bins);
    if (first == last)
        return;

    float samples[STEPS][LANES];
    if (transpose) {
        UNROLL
        for (int s = 0; s < STEPS; ++s)
            UNROLL
            for (int m = 0; m < LANES; ++m)
                samples[s][m] = 0.0f;
    } else {
        shear(false, g, rows, tile, item, samples);
    }

    // The kernel's integral up to an edge of a bin, by step: its difference from one edge to the next is the weight.
    float integral[STEPS];
    const float per_cut = 1.0f / cut, change = -step * per_cut;
    const float first_edge = (((float)first - half) * width - center) * per_cut;
    UNROLL
    for (int s = 0; s < STEPS; ++s)
        integral[s] = tof_cdf(g.tof, first_edge + (float)s * change);
    for (int b = first; b < last; ++b) {
        const float edge = (((float)(b + 1) - half) * width - center) * per_cut;
        // 32 bits, of which several fit the registers that are left.
        const unsigned at = b * g.planes;
        float values[LANES];
        UNROLL
        for (int m = 0; m < LANES; ++m)
            values[m] = transpose && plane[m] >= 0 ? length * value_of(g, begin + (at + plane[m])) : 0.0f;
        UNROLL
        for (int s = 0; s < STEPS; ++s) {
            const float upper = tof_cdf(g.tof, edge + (float)s * change), weight = upper - integral[s];
            integral[s] = upper;
            UNROLL
            for (int m = 0; m < LANES; ++m)
                if (transpose)
                    samples[s][m] += weight * values[m];
                else
                    values[m] += weight * samples[s][m];
        }
        UNROLL
        for (int m = 0; m < LANES; ++m)
            if (!transpose && plane[m] >= 0)
                g.data[begin + (at + plane[m])] += length * values[m];
    }
    if (transpose)
        shear(true, g, rows, tile, item, samples);
}

/* One (view, radial) with TOF. */
DEVICE void project_tof(bool transpose, const Sinogram &g)
{
    SHARED int state;
    SHARED Line line;
    SHARED Tile tile;
    SHARED Step steps[STEPS];
    SHARED_ROWS(rows);
    const int nz = g.grid.shape[2], row = nz + 2;
    const long long begin = BLOCK * g.tof.bins * g.planes;
    if (!start_line(g, line, state) || (transpose && !any_value(g, begin, g.tof.bins * g.planes, state)))
        return;
    for (int first = line.first; first < line.last; first += g.tile) {
        const int count = min(g.tile, line.last - first);
        start_tile(g.grid, line, first, count, tile, steps);
        SYNC;
        for (int i = THREAD; i < count * row; i += THREADS)
            rows[i] = transpose ? 0.0f : sample(g.image, steps[i / row], clamp(i % row - 1, 0, nz - 1), nz);
        SYNC;
        for (int item = THREAD; item < g.items; item += THREADS)
            project_lanes(transpose, g, rows, tile, item, begin);
        SYNC;
        if (transpose) {
            for (int i = THREAD; i < count * row; i += THREADS)
                add_sample(g.back, steps[i / row], clamp(i % row - 1, 0, nz - 1), nz, rows[i]);
            SYNC;
        }
    }
}

KERNEL(sinogram_forward, Sinogram) { project_plain(false, g); }
KERNEL(sinogram_back, Sinogram) { project_plain(true, g); }
KERNEL(sinogram_tof_forward, Sinogram) { project_tof(false, g); }
KERNEL(sinogram_tof_back, Sinogram) { project_tof(true, g); }

/* ---- List-mode events ---- */

/* An event's samples: positions in fixed-point voxels at the first step, and their changes a step. */
struct Path {
    int count;
    int voxel, stride, across;  // flat index at the first step, row 0 and z 0; its change a step; from one row to the next
    long long other, other_slope, z, z_slope;
    float bin, bin_slope, half_bin;  // place of the TOF bin's middle as seen from the sample, and half its width, in cuts
    float length_mm;                 // of a step
};

/* The path of an event, cut to the image and to the reach of its TOF bin. */
DEVICE Path path_of(const Listmode &g, long long event)
{
    const Grid &grid = g.grid;
    const unsigned short *address = g.address + event;
    const double *end1 = g.crystal_xy_mm + 2 * address[0], *end2 = g.crystal_xy_mm + 2 * address[2 * g.events];
    const double z1 = g.ring_z_mm[address[g.events]], z2 = g.ring_z_mm[address[3 * g.events]];
    Line line = trace(grid, end1[0], end1[1], end2[0], end2[1], 0.5);
    const double climb = (z2 - z1) / line.chord, stretch = sqrt(1.0 + climb * climb);
    const double z = (0.5 * (z1 + z2) + line.start * climb - grid.origin_mm[2]) / grid.voxel_mm[2];
    const double z_slope = line.pitch * climb / grid.voxel_mm[2];
    clip(line.first, line.last, z, z_slope, FACE_VOXELS, grid.shape[2] - 1 - FACE_VOXELS);
    Path path;
    path.bin = path.bin_slope = path.half_bin = 0.0f;
    if (g.tof.bins > 0) {
        const double center = (g.tof_bin[event] - 0.5 * (g.tof.bins - 1)) * g.tof.width_mm - line.start * stretch;
        const double slope = line.pitch * stretch, reach = 0.5 * g.tof.width_mm + g.tof.cut_mm;
        clip(line.first, line.last, -center, slope, -reach, reach);
        path.bin = (float)((center - line.first * slope) / g.tof.cut_mm);
        path.bin_slope = (float)(-slope / g.tof.cut_mm);
        path.half_bin = 0.5f * g.tof.width_mm / g.tof.cut_mm;
    }
    path.count = line.last - line.first;
    const int stride_y = grid.shape[2] + 2 * PAD, stride_x = stride_y * (grid.shape[1] + 2 * PAD);
    path.stride = line.along_x ? stride_x : stride_y;
    path.across = line.along_x ? stride_y : stride_x;
    path.voxel = (line.first + PAD) * path.stride + PAD * path.across + PAD;
    path.other = fixed(line.other + line.first * line.slope);
    path.other_slope = fixed(line.slope);
    path.z = fixed(z + line.first * z_slope);
    path.z_slope = fixed(z_slope);
    path.length_mm = (float)(fabs(line.pitch) * stretch);
    return path;
}

/* Line integrals along a path through some doses' images, or the transpose. */
DEVICE void follow(bool transpose, const Listmode &g, const Path &path, float *images, int doses, float values[DOSES])
{
    const int *shape = g.grid.shape;
    const long long cells = (long long)(shape[0] + 2 * PAD) * (shape[1] + 2 * PAD) * (shape[2] + 2 * PAD);
    long long other = path.other, z = path.z;
    float sums[DOSES] = {};
    for (int s = 0; s < path.count; ++s) {
        float weight = path.length_mm;
        if (g.tof.bins > 0) {
            const float bin = path.bin + (float)s * path.bin_slope;
            weight *= tof_cdf(g.tof, bin + path.half_bin) - tof_cdf(g.tof, bin - path.half_bin);
        }
        const float right = weight * fraction_of(other), left = weight - right, above = fraction_of(z), below = 1.0f - above;
        const int at = path.voxel + s * path.stride + voxel_of(other) * path.across + voxel_of(z);
        UNROLL
        for (int m = 0; m < DOSES; ++m)
            if (m < doses) {
                float *cell = images + m * cells + at;
                sums[m] += term(transpose, cell, left * below, values[m]);
                sums[m] += term(transpose, cell + 1, left * above, values[m]);
                sums[m] += term(transpose, cell + path.across, right * below, values[m]);
                sums[m] += term(transpose, cell + path.across + 1, right * above, values[m]);
            }
        other += path.other_slope;
        z += path.z_slope;
    }
    UNROLL
    for (int m = 0; m < DOSES; ++m)
        if (!transpose)
            values[m] = sums[m];
}

/* One event: FORWARD writes its values; BACK adds their back projection; EM that of
   weight / (weight x forward + background), where that divides by more than zero. */
DEVICE void project_event(int mode, const Listmode &g)
{
    const long long event = BLOCK * THREADS + THREAD;
    if (event >= g.events)
        return;
    const int doses = min(g.event_doses[event] - g.first_dose, g.doses);
    if (doses <= 0)
        return;
    const Path path = path_of(g, event);
    if (path.count <= 0)
        return;
    float values[DOSES] = {};
    if (mode != BACK)
        follow(false, g, path, g.images, doses, values);
    UNROLL
    for (int m = 0; m < DOSES; ++m) {
        if (m >= doses)
            continue;
        if (mode == FORWARD) {
            g.values[m * g.events + event] = values[m];
        } else if (mode == BACK) {
            values[m] = g.values[m * g.events + event];
        } else {
            const float expected = g.weight[event] * values[m] + g.background[m * g.events + event];
            values[m] = expected > 0.0f ? g.weight[event] / expected : 0.0f;
        }
    }
    if (mode != FORWARD)
        follow(true, g, path, g.backs, doses, values);
}

KERNEL(listmode_forward, Listmode) { project_event(FORWARD, g); }
KERNEL(listmode_back, Listmode) { project_event(BACK, g); }
KERNEL(listmode_em, Listmode) { project_event(EM, g); }
