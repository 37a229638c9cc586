/* Shakes the last bits of log, exp, atan2, sine and cosine, by more than those of a GPU's functions can be off
   (2 units in the last place by the CUDA C++ Programming Guide, not verified). */

static inline double shaken(double value)
{
    static unsigned state = 1;
    state = state * 1664525u + 1013904223u;
    return value * (1 + ((int)(state >> 16) % 9 - 4) * 0x1p-52);
}

static inline double shaken_cospi(double x) { return shaken(cos(shaken(host_turn(x)))); }

static inline void shaken_sincospi(double x, double *sine, double *cosine)
{
    const double angle = shaken(host_turn(x));
    *sine = shaken(sin(angle));
    *cosine = shaken(cos(angle));
}

#define log(x) shaken(log(x))
#define exp(x) shaken(exp(x))
#define atan2(y, x) shaken(atan2(y, x))
#define cospi shaken_cospi
#define sincospi shaken_sincospi
