/* Photon pairs by Monte Carlo (CUDA): a thread follows the two photons of one decay.

   Function by function what petsim/physics/monte_carlo.py and crystals.py do, where the physics are explained: same random
   numbers in the same order, same operations on doubles in the same order. Compiled without fused multiply-adds, results
   differ from numba's only where the last bits of log, exp, sin, cos and atan2 do.

   Threads append the decays of which they detected something to a list, in an order of chance.

   The macros below are all that is CUDA here. tests/petsim/cuda_host.h defines them for plain C++, where the tests compare
   the kernel with numba's. NVRTC compiles this file without any header. */

#ifndef KERNEL
#define KERNEL(name, Type) extern "C" __global__ void __launch_bounds__(128) name(const __grid_constant__ Type g)
#define DEVICE static __device__
#define THREAD ((int)threadIdx.x)
#define THREADS ((int)blockDim.x)
#define BLOCK ((long long)blockIdx.x)
#define NEXT(counter) atomicAdd(counter, 1)
#endif

/* Layouts of these three are repeated as NumPy types in cuda.py. Lengths in mm, energies in keV, attenuation in 1/mm. */

struct Ring {
    double inner, outer, depth, interaction, half_length, first_angle, middle, pitch, width, unit, ring_pitch, height, sigma_511;
    const double *cos, *sin;      // (sides,)
    const double *photo, *total;  // by energy
    int sides, block, real, rings, axial_block, axial_real, sum_around, sum_along;
};

struct Object {
    const float *mu;           // (x, y, z)
    const double *cumulative;  // (voxels,): activity up to and with a voxel
    const double *ratio;       // attenuation relative to 511 keV, by energy
    double low[3], spacing[3], highest;
    int shape[3];
};

struct Decays {
    Ring ring;
    Object object;
    double bound, cover_mm, radius;
    long long key, start;  // start: index of the first decay
    int decays, crystals;  // crystals: 0 for the cylinder of this radius
    int *found;            // decays in the list
    int *decay;            // (decays,): which one, from the first
    float *numbers;        // (decays, 2, 5): energy, path, position; 0 where not detected
    int *indices;          // (decays, 2, 4): crystal, ring, scatters, triggers; -1 where not detected or not known here
};

enum { MOST_DEPOSITS = 48 };

constexpr double ELECTRON_KEV = 510.99895, CUTOFF_KEV = 25.0, TRIGGER_KEV = 150.0;
constexpr double POLYETHYLENE_PER_CM = 0.0945;
constexpr double PI = 3.141592653589793;

/* ---- Random numbers: petsim/philox.py ---- */

struct Random {
    unsigned key[2], index[2], block;
    int left;          // of these words
    unsigned word[4];  // the next one first
};

DEVICE Random start_random(long long key, long long index)
{
    return {{(unsigned)key, (unsigned)(key >> 32)}, {(unsigned)index, (unsigned)(index >> 32)}, 0, 0, {}};
}

DEVICE void refill(Random &random)
{
    unsigned c0 = random.block++, c1 = random.index[0], c2 = random.index[1], c3 = 0, k0 = random.key[0], k1 = random.key[1];
    for (int i = 0; i < 10; ++i) {
        const unsigned long long p0 = 0xD2511F53ULL * c0, p1 = 0xCD9E8D57ULL * c2;
        c0 = (unsigned)(p1 >> 32) ^ c1 ^ k0;
        c1 = (unsigned)p1;
        c2 = (unsigned)(p0 >> 32) ^ c3 ^ k1;
        c3 = (unsigned)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    random.word[0] = c0;
    random.word[1] = c1;
    random.word[2] = c2;
    random.word[3] = c3;
    random.left = 4;
}

/* Words move up, so that they stay in registers. */
DEVICE double uniform(Random &random)
{
    if (random.left == 0)
        refill(random);
    const unsigned word = random.word[0];
    random.word[0] = random.word[1];
    random.word[1] = random.word[2];
    random.word[2] = random.word[3];
    --random.left;
    return (word + 0.5) * 0x1p-32;
}

DEVICE double gaussian(Random &random)
{
    const double radius = sqrt(-2 * log(uniform(random)));
    return radius * cospi(2 * uniform(random));
}

/* ---- A photon ---- */

struct Photon {
    double at[3], to[3];  // place and direction
    double kev, flown;
};

DEVICE void turn_isotropic(Photon &photon, Random &random)
{
    double x, y;
    const double z = 2 * uniform(random) - 1, across = sqrt(1 - z * z);
    sincospi(2 * uniform(random), &y, &x);
    photon.to[0] = across * x;
    photon.to[1] = across * y;
    photon.to[2] = z;
}

DEVICE void compton(Photon &photon, Random &random)
{
    const double k = photon.kev / ELECTRON_KEV, least = 1 / (1 + 2 * k), logarithm = -log(least);
    const double share = logarithm / (logarithm + 0.5 * (1 - least * least));
    double ratio, away, sin2;
    do {
        if (uniform(random) < share)
            ratio = exp(-logarithm * uniform(random));
        else
            ratio = sqrt(least * least + (1 - least * least) * uniform(random));
        away = (1 - ratio) / (k * ratio);
        sin2 = fmax(0.0, away * (2 - away));
    } while (!(uniform(random) < 1 - ratio * sin2 / (1 + ratio * ratio)));
    double x, y;
    const double along = 1 - away, aside = sqrt(sin2);
    sincospi(2 * uniform(random), &y, &x);
    const double a = aside * x, b = aside * y;
    const double dx = photon.to[0], dy = photon.to[1], dz = photon.to[2], across = sqrt(dx * dx + dy * dy);
    if (across < 1e-9) {
        photon.to[0] = a;
        photon.to[1] = b;
        photon.to[2] = along * copysign(1.0, dz);
    } else {
        photon.to[0] = dx * along + (dx * dz * a - dy * b) / across;
        photon.to[1] = dy * along + (dy * dz * a + dx * b) / across;
        photon.to[2] = dz * along - across * a;
    }
    photon.kev *= ratio;
}

/* Distance to where the photon leaves a cylinder around the axis; negative where it does not. */
DEVICE double to_cylinder(const Photon &photon, double radius)
{
    const double *x = photon.at, *d = photon.to;
    const double a = d[0] * d[0] + d[1] * d[1], b = x[0] * d[0] + x[1] * d[1];
    const double c = x[0] * x[0] + x[1] * x[1] - radius * radius, root = b * b - a * c;
    if (a < 1e-12 || root < 0)
        return -1.0;
    return (-b + sqrt(root)) / a;
}

DEVICE void move(Photon &photon, double length)
{
    for (int axis = 0; axis < 3; ++axis)
        photon.at[axis] += length * photon.to[axis];
    photon.flown += length;
}

DEVICE int nearest_kev(const Photon &photon) { return (int)(photon.kev + 0.5); }

/* ---- Crystals ---- */

struct Place {
    int crystal, row;  // the first is -1 where there is none
};

DEVICE Place crystal_at(const Ring &ring, double x, double y, double z)
{
    const Place none = {-1, 0};
    int side = (int)floor((atan2(y, x) - ring.first_angle) * ring.sides / (2 * PI) + 0.5) % ring.sides;
    if (side < 0)
        side += ring.sides;
    const double c = ring.cos[side], s = ring.sin[side], deep = x * c + y * s - ring.inner;
    if (deep < 0 || deep > ring.depth)
        return none;
    const double along = (y * c - x * s) / ring.pitch + ring.middle;
    const int crystal = (int)floor(along);
    if (crystal < 0 || crystal >= ring.real || fabs(along - crystal - 0.5) * ring.pitch > ring.width / 2)
        return none;
    const double above = z + ring.half_length;
    const int unit = (int)floor(above / ring.unit);
    const double place = (above - unit * ring.unit) / ring.ring_pitch;
    int row = (int)floor(place);
    if (unit < 0 || row >= ring.axial_real || fabs(place - row - 0.5) * ring.ring_pitch > ring.height / 2)
        return none;
    row += unit * ring.axial_block;
    if (row >= ring.rings)
        return none;
    return {side * ring.block + crystal, row};
}

DEVICE void crystal_center(const Ring &ring, const Place &place, double center[3])
{
    const int side = place.crystal / ring.block, unit = place.row / ring.axial_block;
    const double c = ring.cos[side], s = ring.sin[side], deep = ring.inner + ring.interaction;
    const double along = (place.crystal - side * ring.block + 0.5 - ring.middle) * ring.pitch;
    center[0] = deep * c - along * s;
    center[1] = deep * s + along * c;
    center[2] = unit * ring.unit + (place.row - unit * ring.axial_block + 0.5) * ring.ring_pitch - ring.half_length;
}

struct Deposit {
    Place place;
    double kev;
};

struct Deposits {
    int count;
    Deposit list[MOST_DEPOSITS];
};

DEVICE void deposit(Deposits &deposits, const Place &place, double kev)
{
    if (deposits.count == MOST_DEPOSITS)
        deposits.list[MOST_DEPOSITS - 1].kev += kev;
    else
        deposits.list[deposits.count++] = {place, kev};
}

/* Follow a photon through the crystals until it is absorbed or gone; returns the path flown to its first deposit. */
DEVICE double follow(const Ring &ring, Photon &photon, Random &random, Deposits &deposits)
{
    double first = -1.0;
    const double *x = photon.at;
    for (;;) {
        double r2 = x[0] * x[0] + x[1] * x[1];
        if (r2 < ring.inner * ring.inner) {
            const double length = to_cylinder(photon, ring.inner);
            if (length < 0)
                return first;
            move(photon, length + 1e-6);
            if (fabs(x[2]) > ring.half_length)
                return first;
        }
        const int kev = nearest_kev(photon);
        move(photon, -log(uniform(random)) / ring.total[kev]);
        r2 = x[0] * x[0] + x[1] * x[1];
        if (r2 > ring.outer * ring.outer || fabs(x[2]) > ring.half_length)
            return first;
        if (r2 < ring.inner * ring.inner)
            continue;
        const Place place = crystal_at(ring, x[0], x[1], x[2]);
        if (place.crystal < 0)
            continue;
        if (first < 0)
            first = photon.flown;
        const double energy = photon.kev;
        const bool absorbed = uniform(random) * ring.total[kev] < ring.photo[kev];
        if (!absorbed)
            compton(photon, random);
        if (absorbed || photon.kev < CUTOFF_KEV) {
            deposit(deposits, place, energy);
            return first;
        }
        deposit(deposits, place, energy - photon.kev);
    }
}

struct Block {
    int address;
    double kev, crystal, row;  // the last two times energy
};

struct Readout {
    double kev;
    Place place;
    int triggers;
};

DEVICE Readout read_out(const Ring &ring, const Deposits &deposits, Random &random)
{
    Block blocks[MOST_DEPOSITS];
    int found = 0;
    for (int i = 0; i < deposits.count; ++i) {
        const Deposit &one = deposits.list[i];
        const int side = one.place.crystal / ring.block, unit = one.place.row / ring.axial_block;
        const int around = (one.place.crystal - side * ring.block) / ring.sum_around;
        const int along = (one.place.row - unit * ring.axial_block) / ring.sum_along;
        const int address = ((side * ring.block + around) * ring.rings + unit) * ring.axial_block + along;
        int k = 0;
        while (k < found && blocks[k].address != address)
            ++k;
        if (k == found)
            blocks[found++] = {address, 0.0, 0.0, 0.0};
        blocks[k].kev += one.kev;
        blocks[k].crystal += one.kev * one.place.crystal;
        blocks[k].row += one.kev * one.place.row;
    }
    if (found == 0)
        return {0.0, {-1, -1}, 0};
    int best = 0, triggers = 0;
    for (int k = 0; k < found; ++k) {
        triggers += blocks[k].kev > TRIGGER_KEV;
        if (blocks[k].kev > blocks[best].kev)
            best = k;
    }
    const Block &block = blocks[best];
    const double spread = ring.sigma_511 * sqrt(block.kev / ELECTRON_KEV);
    const double measured = fmax(block.kev + spread * gaussian(random), 0.0);
    const Place place = {(int)(block.crystal / block.kev + 0.5), (int)(block.row / block.kev + 0.5)};
    return {fmax(measured, 1e-3), place, triggers};
}

/* ---- The object ---- */

/* Follow a photon through the mu-map inside a cylinder; returns scatters, or -1 where it falls below the cutoff. */
DEVICE int through_object(const Object &object, Photon &photon, Random &random, double bound)
{
    int scatters = 0;
    const double *x = photon.at, *d = photon.to;
    if (object.highest <= 0)
        return scatters;
    for (;;) {
        double begin = 0.0, end = to_cylinder(photon, bound);
        if (end < 0 && d[0] * d[0] + d[1] * d[1] < 1e-12)
            end = 1e6;
        for (int axis = 0; axis < 3; ++axis) {
            const double low = object.low[axis], high = low + object.shape[axis] * object.spacing[axis];
            if (fabs(d[axis]) < 1e-12) {
                if (x[axis] < low || x[axis] > high)
                    end = -1.0;
            } else {
                const double one = (low - x[axis]) / d[axis], two = (high - x[axis]) / d[axis];
                begin = fmax(begin, fmin(one, two));
                end = fmin(end, fmax(one, two));
            }
        }
        const double majorant = object.highest * object.ratio[nearest_kev(photon)];
        double at = begin;
        float mu;
        do {
            at -= log(uniform(random)) / majorant;
            if (at >= end)
                return scatters;
            int voxel[3];
            for (int axis = 0; axis < 3; ++axis) {
                const int i = (int)((x[axis] + at * d[axis] - object.low[axis]) / object.spacing[axis]);
                voxel[axis] = i < object.shape[axis] ? i : object.shape[axis] - 1;
            }
            mu = object.mu[((long long)voxel[0] * object.shape[1] + voxel[1]) * object.shape[2] + voxel[2]];
        } while (!(uniform(random) * object.highest < mu));
        move(photon, at);
        compton(photon, random);
        ++scatters;
        if (photon.kev < CUTOFF_KEV)
            return -1;
    }
}

/* Follow a photon through object and bore cover; returns scatters, or -1 where it is lost. */
DEVICE int out_of_bore(const Decays &g, Photon &photon, Random &random)
{
    int scatters = 0;
    for (;;) {
        const int more = through_object(g.object, photon, random, g.bound);
        if (more < 0)
            return -1;
        scatters += more;
        const double length = to_cylinder(photon, g.bound);
        if (g.cover_mm <= 0 || length < 0)
            return scatters;
        const double *at = photon.at, *d = photon.to, x = at[0] + length * d[0], y = at[1] + length * d[1];
        const double straight = (x * d[0] + y * d[1]) / g.bound, depth = g.cover_mm / fmax(straight, 1e-3);
        const double mu = POLYETHYLENE_PER_CM / 10 * g.object.ratio[nearest_kev(photon)];
        if (uniform(random) < exp(-mu * depth))
            return scatters;
        move(photon, length);
        compton(photon, random);
        ++scatters;
        if (photon.kev < CUTOFF_KEV)
            return -1;
        if (at[0] * d[0] + at[1] * d[1] >= 0)
            return scatters;
    }
}

/* Place of a decay, and the direction of its first photon. */
DEVICE Photon emit(const Object &object, Random &random)
{
    const int *shape = object.shape;
    const long long voxels = (long long)shape[0] * shape[1] * shape[2];
    const double whole = uniform(random), rest = uniform(random);
    const double draw = (whole + (rest - 0.5) * 0x1p-32) * object.cumulative[voxels - 1];
    long long voxel = 0, end = voxels - 1;  // The first voxel above the draw, or the last one.
    while (voxel < end) {
        const long long middle = (voxel + end) / 2;
        if (object.cumulative[middle] > draw)
            end = middle;
        else
            voxel = middle + 1;
    }
    const long long cell[3] = {voxel / shape[2] / shape[1], voxel / shape[2] % shape[1], voxel % shape[2]};
    Photon photon = {};
    for (int axis = 0; axis < 3; ++axis)
        photon.at[axis] = object.low[axis] + (cell[axis] + uniform(random)) * object.spacing[axis];
    turn_isotropic(photon, random);
    return photon;
}

/* ---- Photon pairs ---- */

struct Detected {
    double kev, path, center[3];
    Place place;
    int scatters, triggers;  // the first is -1 where not detected
};

DEVICE Detected detect(const Decays &g, Photon &photon, Random &random)
{
    Detected hit = {0.0, 0.0, {}, {-1, -1}, -1, -1};
    const int scatters = out_of_bore(g, photon, random);
    if (scatters < 0)
        return hit;
    if (g.crystals) {
        Deposits deposits;
        deposits.count = 0;
        const double first = follow(g.ring, photon, random, deposits);
        const Readout readout = read_out(g.ring, deposits, random);
        if (readout.place.crystal < 0)
            return hit;
        hit.kev = readout.kev;
        hit.path = first;
        hit.place = readout.place;
        hit.triggers = readout.triggers;
        crystal_center(g.ring, hit.place, hit.center);
    } else {
        const double length = to_cylinder(photon, g.radius);
        if (length < 0 || fabs(photon.at[2] + length * photon.to[2]) > g.ring.half_length)
            return hit;
        move(photon, length);
        hit.kev = photon.kev;
        hit.path = photon.flown;
        for (int axis = 0; axis < 3; ++axis)
            hit.center[axis] = photon.at[axis];
    }
    hit.scatters = scatters;
    return hit;
}

KERNEL(photon_pairs, Decays)
{
    const long long decay = BLOCK * THREADS + THREAD;
    if (decay >= g.decays)
        return;
    Random random = start_random(g.key, g.start + decay);
    const Photon origin = emit(g.object, random);
    if (origin.at[0] * origin.at[0] + origin.at[1] * origin.at[1] >= g.bound * g.bound)
        return;
    Detected hits[2];
    for (int which = 0; which < 2; ++which) {
        Photon photon = origin;
        for (int axis = 0; axis < 3; ++axis)
            photon.to[axis] *= 1 - 2 * which;
        photon.kev = ELECTRON_KEV;
        hits[which] = detect(g, photon, random);
    }
    if (hits[0].scatters < 0 && hits[1].scatters < 0)
        return;
    const long long row = NEXT(g.found);
    g.decay[row] = (int)decay;
    for (int which = 0; which < 2; ++which) {
        const Detected &hit = hits[which];
        float *numbers = g.numbers + 5 * (2 * row + which);
        int *indices = g.indices + 4 * (2 * row + which);
        numbers[0] = (float)hit.kev;
        numbers[1] = (float)hit.path;
        for (int axis = 0; axis < 3; ++axis)
            numbers[2 + axis] = (float)hit.center[axis];
        indices[0] = hit.place.crystal;
        indices[1] = hit.place.row;
        indices[2] = hit.scatters;
        indices[3] = hit.triggers;
    }
}
