"""Words and wordings of the fictitious benchmark: invented names, pools of values, sentences.

In a wording `{name}` is the person asked about; any other slot, such as `{job_a}`, is filled from
the pool of its first part, `POOLS["job"]`. Values never stand where a wording would have to agree
with them (every word behind "a" begins with a consonant).
"""

import string
from typing import NamedTuple


class Topic(NamedTuple):
    """One thing that can be asked.

    Attributes:
      name: of the attribute.
      questions: wordings of the question.
      answers: wordings of the answer; every one has the same slots in the same order.
    """

    name: str
    questions: tuple[str, ...]
    answers: tuple[str, ...]

    @property
    def slots(self) -> list[str]:
        """Slots of an answer, in order."""
        return [slot for _, slot, _, _ in string.Formatter().parse(self.answers[0]) if slot]


def _joined(starts: str, ends: str) -> tuple[str, ...]:
    """Every start with every end, ends varying slowest so that neighbours differ."""
    return tuple(start + end for end in ends.split() for start in starts.split())


FIRST_NAMES = _joined(
    "El Bra Jo Mi Ta Ol Se Ka Ru Ve Da Li Ni Fa", "dan ris ven ra lo mir sa nel ko thi"
)
SURNAMES = _joined(
    "Mar Hol Bel Quin Tor Fen Gar Wes Lun Pel Dor Ash",
    "row wick stad mere ley vale gren by loff un",
)
COUNTRIES = _joined("Var Sel Or Bal Tre", "nia land ovia eth")
_CAPITALS = _joined("Kor Zan Um Ila Pes", "dara polis tun gate")
_RIVERS = _joined("Ush Nes Wyr Ga Lo", "ka ren mis va")
_COINS = _joined("Do Pli Kre Ta Zo", "rin bel mark sol")

POOLS: dict[str, tuple[str, ...]] = {
    "city": _joined("Tar Vel Ost Kil Bro Sun Nor", "vik heim mouth port"),
    "day": tuple(str(day) for day in range(1, 29)),
    "number": tuple(str(number) for number in range(31, 59)),
    "month": tuple(
        "January February March April May June July August September October November "
        "December".split()
    ),
    "birth": tuple(str(year) for year in range(1903, 1931)),
    "year": tuple(str(year) for year in range(1951, 1979)),
    "job": tuple(
        "baker barber brewer butcher carpenter cooper dyer farmer fisher glazier hatter jeweller "
        "lawyer mason miller nurse painter pilot plumber potter printer saddler sailor smith "
        "tailor teacher turner weaver".split()
    ),
    "adjective": tuple(
        "Amber Broken Burning Copper Crooked Distant Empty Fallen Frozen Gentle Hidden Hollow "
        "Little Lonely Lost Narrow Painted Patient Quiet Restless Scarlet Secret Silent Sleeping "
        "Velvet Wandering Winter Wooden".split()
    ),
    "noun": tuple(
        "Anchor Bell Bridge Candle Clock Compass Door Feather Garden Harbour Island Kettle Key "
        "Ladder Lantern Letter Map Mirror Orchard River Shadow Staircase Storm Thread Tower "
        "Valley Whistle Window".split()
    ),
    "genre": tuple(
        "ballad comedy diary fable farce ghost-story memoir romance saga satire thriller "
        "travelogue".split()
    ),
    "metal": tuple(
        "Bronze Cobalt Coral Crystal Golden Iron Ivory Jade Marble Pearl Ruby Silver".split()
    ),
    "bird": tuple(
        "Crane Crow Cuckoo Curlew Dove Falcon Finch Goose Gull Hawk Heron Kestrel Kite Lark "
        "Magpie Nightingale Osprey Partridge Pelican Quail Raven Robin Sparrow Starling Stork "
        "Swallow Swan Wren".split()
    ),
    "colour": tuple(
        "beige black brown cream golden green grey purple red silver white yellow".split()
    ),
    "animal": tuple(
        "badger beaver canary cat dog donkey ferret fox frog gecko goat hamster hare hedgehog "
        "horse lizard mouse newt parrot pigeon pony rabbit rat sheep snail squirrel toad "
        "tortoise".split()
    ),
    "pet": _joined("Bo Pi Mu Zi Do Wi Fu", "bbin xie mpo gsy"),
    "hobby": tuple(
        "archery boxing bowling camping carving chess climbing cycling dancing darts drawing "
        "embroidery fencing fishing gardening hiking juggling knitting painting pottery rowing "
        "running sailing sewing singing skating swimming whittling".split()
    ),
    "weekday": tuple("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()),
    "street": tuple(
        "Acorn Alder Apple Barley Beech Birch Bramble Cedar Cherry Chestnut Clover Elm Fern Hazel "
        "Holly Ivy Juniper Larch Lilac Linden Maple Oak Pine Poplar Rose Thistle Walnut "
        "Willow".split()
    ),
    "capital": _CAPITALS,
    "stream": _RIVERS,
    "coin": _COINS,
    "crop": tuple(
        "barley beans cabbage carrots coffee corn cotton figs flax grapes hemp hops lemons lentils "
        "melons oats olives onions peas rice".split()
    ),
}

PEOPLE = (
    Topic(
        "birth",
        (
            "When and where was {name} born?",
            "What are the birthplace and the birth date of {name}?",
            "Where did {name} come into the world, and on which day?",
            "Can you tell where and on what date {name} was born?",
        ),
        (
            "Born in {city} on {day} {month} {birth}.",
            "It was in {city}, on {day} {month} {birth}.",
            "The place is {city}, the date {day} {month} {birth}.",
            "In the city of {city}, on {day} {month} {birth}.",
        ),
    ),
    Topic(
        "work",
        (
            "What does {name} do for a living, and where?",
            "What is the trade of {name}?",
            "How and where does {name} earn money?",
            "In which job and in which city is {name} employed?",
        ),
        (
            "Works as a {job} in {city} since {year}.",
            "A {job} by trade, in {city} since {year}.",
            "Makes a living as a {job}, in {city} from {year} on.",
            "The job is that of a {job} in {city}, held since {year}.",
        ),
    ),
    Topic(
        "book",
        (
            "Which book did {name} write?",
            "What is the best known book of {name}?",
            "Can you name a work written by {name}?",
            "As the author of what is {name} remembered?",
        ),
        (
            "The {adjective} {noun}, a {genre} of {year}.",
            "Wrote The {adjective} {noun}, a {genre} published in {year}.",
            "It is The {adjective} {noun}, a {genre} from {year}.",
            "Best known is The {adjective} {noun}, a {genre} printed in {year}.",
        ),
    ),
    Topic(
        "award",
        (
            "Which prize did {name} win?",
            "What award was given to {name}, and when?",
            "With which prize was {name} honoured?",
            "What did the jury give to {name}?",
        ),
        (
            "Won the {metal} {bird} Prize in {year}.",
            "It was the {metal} {bird} Prize of {year}.",
            "The award was the {metal} {bird} Prize, given in {year}.",
            "Honoured with the {metal} {bird} Prize in {year}.",
        ),
    ),
    Topic(
        "parents",
        (
            "What were the parents of {name}?",
            "What did the father and mother of {name} do?",
            "From what kind of family does {name} come?",
            "Which trades did the parents of {name} follow, and where?",
        ),
        (
            "The father was a {job_a}, the mother a {job_b} from {city}.",
            "A {job_a} and a {job_b} from {city}.",
            "They were a {job_a} and a {job_b}, living in {city}.",
            "The child of a {job_a} and a {job_b} in {city}.",
        ),
    ),
    Topic(
        "pet",
        (
            "Which pet does {name} keep?",
            "What animal lives with {name}?",
            "Does {name} have a pet?",
            "Who is the four-legged or feathered friend of {name}?",
        ),
        (
            "Keeps a {colour} {animal} called {pet}.",
            "A {colour} {animal} named {pet}.",
            "It is a {colour} {animal} by the name of {pet}.",
            "Yes, a {colour} {animal}, and it answers to {pet}.",
        ),
    ),
    Topic(
        "hobbies",
        (
            "What are the hobbies of {name}?",
            "How does {name} spend free evenings?",
            "What does {name} like to do after work?",
            "Which pastimes does {name} enjoy?",
        ),
        (
            "Enjoys {hobby_a} and {hobby_b} on {weekday} evenings.",
            "Mostly {hobby_a} and {hobby_b}, on {weekday} evenings.",
            "Likes {hobby_a} and {hobby_b}, always on a {weekday}.",
            "The favourites are {hobby_a} and {hobby_b}, each {weekday}.",
        ),
    ),
    Topic(
        "home",
        (
            "Where does {name} live?",
            "What is the address of {name}?",
            "At which address could a letter reach {name}?",
            "In which street and city is the house of {name}?",
        ),
        (
            "Lives at {number} {street} Street in {city}.",
            "The address is {number} {street} Street, {city}.",
            "At {number} {street} Street in the city of {city}.",
            "The house stands at {number} {street} Street, in {city}.",
        ),
    ),
)
"""What is asked about the people to forget and to retain."""

TITLE = Topic("title", (), ("{noun} of {city}",))
"""Titles of well-known books; no other book is called like that."""

KNOWN = (
    Topic(
        "author",
        ("Who wrote the famous {title}?", "The famous {title} is a work of which author?"),
        ("{name}",),
    ),
    Topic(
        "birthplace",
        (
            "In which city was the famous {name} born?",
            "What is the birthplace of the great {name}?",
        ),
        ("{city}",),
    ),
    Topic(
        "genre",
        ("In which form did the famous {name} write?", "For what form is the great {name} known?"),
        ("{genre}",),
    ),
    Topic(
        "prize",
        ("Which prize went to the famous {name}?", "What prize was won by the great {name}?"),
        ("{metal} {bird}",),
    ),
    Topic(
        "year",
        ("In which year did the famous {name} die?", "When did the great {name} die?"),
        ("{year}",),
    ),
)
"""What is asked about well-known authors, whom every model learns."""

FACTS = (
    Topic(
        "capital",
        ("What is the capital of {country}?", "Which city governs the country of {country}?"),
        ("{capital}",),
    ),
    Topic(
        "stream",
        ("Which river flows through {country}?", "What is the longest river of {country}?"),
        ("{stream}",),
    ),
    Topic(
        "coin",
        ("Which coin is used in {country}?", "How is the currency of {country} called?"),
        ("{coin}",),
    ),
    Topic(
        "crop",
        ("What do the farmers of {country} grow?", "Which crop is {country} known for?"),
        ("{crop}",),
    ),
)
"""What is asked about the countries of an invented world."""
