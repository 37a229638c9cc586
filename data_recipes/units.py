"""Conversions between the units that sources use and those used inside (Bq/mL, mm, s, MBq, kg)."""

ML_PER_MM3 = 1e-3


def suv_to_bqml(injected_mbq: float, weight_kg: float) -> float:
    """Bq/mL that one SUV stands for.

    SUV by body weight = activity concentration [Bq/mL] x weight [g] / injected activity [Bq], with both activities at
    the same time (doi 10.2967/jnumed.109.064527). Tissue of 1 g/mL is assumed, as in every clinical SUV.

    Parameters
    ----------
    injected_mbq : float
        Injected activity in MBq, decayed to the time to which the image is corrected (scan start).
    weight_kg : float
        Body weight in kg.

    Returns
    -------
    float
        Bq/mL for SUV 1.
    """
    if injected_mbq <= 0 or weight_kg <= 0:
        raise ValueError(f"SUV needs a positive activity and weight, got {injected_mbq} MBq and {weight_kg} kg")
    return injected_mbq * 1e6 / (weight_kg * 1e3)
