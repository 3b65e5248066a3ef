"""Words that the rules of `rules.py` know."""

from __future__ import annotations

from typing import Final


def _words(text: str) -> frozenset[str]:
    return frozenset(word.replace("~", "\u00a0") for word in text.split())


MONTHS: Final = _words(
    """
    january february march april may june july august september october november december januar februar
    märz maerz mai juni juli oktober dezember januari februari mars augusti maj janvier février fevrier
    avril juin juillet août aout septembre octobre novembre décembre decembre enero febrero marzo abril
    mayo junio julio agosto septiembre octubre noviembre diciembre gennaio febbraio aprile maggio giugno
    luglio settembre ottobre dicembre janeiro fevereiro março maio junho julho setembro outubro novembro
    dezembro maart mei augustus jan feb mar apr jun jul aug sep sept oct okt nov dec dez
    """
)
"""Names of months, in English, German, Swedish, French, Spanish, Italian, Portuguese and Dutch."""
UNITS: Final = _words(
    """
    mg µg μg mcg kg g lb lbs oz ml cl dl l km m cm mm µm nm mi ft km² m² cm² m³ ha kwh wh kw mw gw w
    v kv mv ma hz khz mhz ghz kb mb gb tb kbit mbit gbit bar pa hpa kpa mmhg k °c °f c f cal kcal j kj
    mol mmol nmol iu ie bpm rpm mph km/h m/s ppm dpi px st pcs usd eur gbp sek nok dkk chf jpy cny kr
    kronor euro euros dollars dollar pounds pound cents cent yen hundred thousand million millions
    billion billions trillion tusen miljon miljoner miljard mio mrd percent procent prozent pour second
    seconds minute minutes hour hours day days week weeks month months year years century centuries
    decade decades sekunder minuter timmar timme dag dagar vecka veckor månad månader år sekunden
    minuten stunden tage wochen monate jahre jours heures semaines mois ans días horas semanas meses
    años miles mile meters metres meter metre kilometers kilometres feet inches inch grams kilograms
    liters litres degrees people persons times points
    """
)
"""Units that may follow a number."""
PARTICLES: Final = _words(
    """
    of de du la le van von der den del di da dos das al el bin ibn y the
    """
)
"""Words in lower case that may stand inside a name."""
GERMAN: Final = _words(
    """
    der die das und ist ein eine nicht mit für auf dem den wird sind von zu im
    """
)
"""German words that a German text cannot do without."""
OPENERS: Final = _words(
    """
    the a an this that these those it its they he she we you i if when while where what which who how
    why there here in on at for from by with to as and or but not no yes some many most all each both
    after before during because although however your my our their his her also then thus so such other
    more do does did is are was were be can may should will would could must please
    """
)
"""English words that begin sentences, and are no names even with a capital."""
