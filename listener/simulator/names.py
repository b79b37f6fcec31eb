"""Plausible people and subjects, always the same for the same dice."""

from random import Random

# ruff: noqa: SIM905  (tables of words read better as text)

_GIVEN = (
    "alice adam aisha anna ben bianca carlos chloe daniel diana elena emil emma erik fatima felix fiona florian "
    "gabriel grace hana hannah hugo ines ingrid isaac ivan jana jonas julia kai karin katja lars laura leo lina "
    "lucas maria marta max mia milan mina nadia naomi nils noah nora olga oliver omar oscar paul petra rafael rosa "
    "ruth samuel sara simon sofia stefan tara theo tomas valerie vera victor wanda xavier yara yusuf zoe"
).split()
_FAMILY = (
    "martin adler ahmed andersson baker bauer becker berg bianchi brown carter chen costa dubois eriksson evans "
    "fernandez fischer fontaine garcia gomez green haas hansen hoffmann huber ito jansen jensen kaya keller khan kim "
    "klein kowalski kumar lang larsen lehmann lopez lorenz maier moreau mueller nakamura nguyen nielsen novak okafor "
    "olsen patel peeters petrov price ricci roth russo santos schmidt schneider silva smith sokolov suzuki taylor "
    "tanaka thomas torres vargas vogel wagner walker weber wilson wolf wright yilmaz young zimmermann"
).split()
_TOPICS = (
    "Quarterly figures,Lunch on Thursday?,Contract renewal,Minutes of yesterday,Offer 4711,Travel request,"
    "Invoice attached,Server maintenance,Welcome aboard,Re: budget,Re: contract renewal,Fwd: delivery note,"
    "Holiday plan,New price list,Incident report,Training next week,Réunion d'équipe,Änderung des Termins"
).split(",")
_FOLDERS = "Projects Customers Suppliers Archive Travel Invoices Team Newsletters Private Reports".split()


def people(count: int, rng: Random) -> list[tuple[str, str]]:
    """`count` pairs (display name, local part of the address); no local part occurs twice."""
    pairs = [(given, family) for given in _GIVEN for family in _FAMILY]
    rng.shuffle(pairs)
    named = []
    for number in range(count):
        given, family = pairs[number % len(pairs)]
        again = number // len(pairs)
        suffix = str(again + 1) if again else ""
        named.append(
            (f"{given.title()} {family.title()}{suffix and ' ' + suffix}", f"{given}.{family}{suffix}")
        )
    return named


def subject(rng: Random) -> str:
    """A line that could stand over a mail."""
    return rng.choice(_TOPICS)


def folder_name(rng: Random) -> str:
    """A name that a user could give to a folder."""
    return f"{rng.choice(_FOLDERS)} {rng.randrange(1, 1000)}"


def person(rng: Random) -> str:
    """A first name and a family name."""
    return f"{rng.choice(_GIVEN).title()} {rng.choice(_FAMILY).title()}"
