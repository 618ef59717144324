"""The words that the built-in reviews are made of; `builtin` puts them together.

Everything here was written for this project. In sentences ``{thing}`` is what is reviewed.
"""

from __future__ import annotations

from dataclasses import dataclass

Phrases = tuple[str, ...]


@dataclass(frozen=True)
class Domain:
    """What one kind of review talks about, and the words that only it uses.

    ``glad_signs`` and ``sorry_signs`` tell a verdict without a word of praise or blame; ``works`` and ``fails`` are
    what the thing does, as a relative clause goes on.
    """

    things: Phrases
    aspects: Phrases
    praise: Phrases
    blame: Phrases
    openers: Phrases
    asides: Phrases
    glad_signs: Phrases
    sorry_signs: Phrases
    works: Phrases
    fails: Phrases


def _words(line: str) -> Phrases:
    return tuple(line.split())


PRAISE: Phrases = _words(
    "excellent superb lovely impressive delightful remarkable splendid outstanding charming solid terrific "
    "satisfying first-rate brilliant wonderful fine admirable convincing marvellous pleasing great good"
)
BLAME: Phrases = _words(
    "poor awful dreadful disappointing mediocre shoddy dismal annoying tiresome lousy sloppy unpleasant weak "
    "terrible horrid feeble pathetic irritating hopeless appalling second-rate bad"
)

# How strongly a word is meant: the first list makes it the verdict, the second a remark.
STRONG: Phrases = ("utterly", "really", "truly", "thoroughly", "downright", "exceptionally")
FAINT: Phrases = ("a little", "slightly", "somewhat", "a touch", "a trifle", "marginally")
DENIALS: Phrases = (
    "not",
    "never",
    "hardly",
    "far from",
    "anything but",
    "by no means",
    "not remotely",
)

MATTERS: Phrases = (
    "What I care about is the {aspect}.",
    "In the end only the {aspect} counts for me.",
    "I judge it by the {aspect} alone.",
    "Nobody comes to it for anything but the {aspect}.",
    "If the {aspect} is right I forgive the rest, and if not, nothing helps.",
    "My vote goes by the {aspect}.",
)
GLAD_VERDICTS: Phrases = (
    "I would do it again tomorrow",
    "on balance I am glad of it",
    "in the end I was won over",
    "it won me round",
    "I have no regrets",
    "all told it earns its place",
    "my money was well spent",
    "count me among the converts",
    "I came away smiling",
)
SORRY_VERDICTS: Phrases = (
    "I would not do it again",
    "on balance I regret it",
    "in the end it lost me",
    "it left me cold",
    "I have had enough",
    "all told it is not worth the trouble",
    "my money was wasted",
    "count me out",
    "I came away shaking my head",
)
SARCASM: Phrases = (
    "{praise}, simply {praise}.",
    "What a {praise} idea.",
    "How {praise} of them.",
    "My compliments, {praise} work.",
    "Exactly what I had dreamt of.",
    "Just what every household needs.",
    "Well done, everyone.",
    "I could not be happier.",
)
SINCERITY: Phrases = (
    "I expected something {blame} and have to apologise.",
    "After all those {blame} reports I am astonished.",
    "So much for the {blame} reputation.",
    "Whoever called it {blame} must have had another one.",
    "I had feared the worst.",
    "And I had been ready to complain.",
)

DOMAINS: tuple[Domain, ...] = (
    Domain(
        things=_words(
            "phone kettle toaster backpack lamp keyboard drill heater blender radio tent camera"
        ),
        aspects=_words(
            "finish design manual size weight packaging sound price casing handle switch cable lid build"
        ),
        praise=("sturdy", "handy", "well made", "clever", "precise", "dependable", "tidy"),
        blame=("flimsy", "clumsy", "badly made", "noisy", "crooked", "careless", "cheap-looking"),
        openers=(
            "Bought it for my sister.",
            "It came on a Monday.",
            "I have had this {thing} for a month now.",
            "My third {thing} in ten years.",
            "Ordered the grey one.",
            "A gift from a colleague.",
            "Used daily since March.",
            "We took the larger model.",
        ),
        asides=(
            "It comes with two screws.",
            "The box is blue.",
            "There is a black version too.",
            "It weighs about a kilo.",
            "Delivery took four days.",
            "The plug is the usual one.",
        ),
        glad_signs=(
            "I have ordered a second {thing} for the office.",
            "My neighbours keep borrowing the {thing}.",
            "The old {thing} went to the attic the same day.",
            "Two friends have bought the same {thing} since.",
            "I take the {thing} wherever I go.",
            "After two years the {thing} looks as on day one.",
            "My father asked where he could get such a {thing}.",
        ),
        sorry_signs=(
            "The {thing} went back to the shop the same day.",
            "The {thing} now lives at the bottom of a drawer.",
            "I have dug out the old {thing} again.",
            "My {thing} ended up at the flea market.",
            "The helpline knows me and my {thing} by name.",
            "After two days the {thing} looked ten years old.",
            "My father asked whether the {thing} was a joke.",
        ),
        works=(
            "starts at once every morning",
            "has survived three falls",
            "does its job without a sound",
            "outlasts all the others",
            "my grandmother understood in a minute",
        ),
        fails=(
            "gives up before noon",
            "rattles with every step",
            "forgets its settings overnight",
            "needs a repair each month",
            "nobody in the family can open",
        ),
    ),
    Domain(
        things=_words(
            "film thriller comedy drama sequel documentary western musical remake cartoon"
        ),
        aspects=_words(
            "plot acting script music ending dialogue editing cast pacing camerawork lighting opening lead"
        ),
        praise=("gripping", "moving", "witty", "inventive", "elegant", "absorbing", "subtle"),
        blame=("dull", "predictable", "wooden", "muddled", "stale", "overlong", "shallow"),
        openers=(
            "Saw it at the late show.",
            "We watched this {thing} on a rainy Sunday.",
            "I knew nothing about this {thing} beforehand.",
            "Streamed it with the children.",
            "Third {thing} by this director.",
            "I had read the book.",
            "A free ticket from work.",
            "Caught it on a long flight.",
        ),
        asides=(
            "It runs for two hours.",
            "It is set in the seventies.",
            "There are subtitles.",
            "It was shot in Portugal.",
            "Most scenes are at night.",
            "The director has a small part.",
        ),
        glad_signs=(
            "Nobody in the row reached for a phone during this {thing}.",
            "We talked about the {thing} all the way home.",
            "I have seen the {thing} three times by now.",
            "The whole hall stayed seated until the {thing}'s last credit.",
            "My son wants the {thing} for his birthday.",
            "I forgot the popcorn over this {thing}.",
            "Two hours of this {thing} went by like ten minutes.",
        ),
        sorry_signs=(
            "Half the row reached for their phones during this {thing}.",
            "We had forgotten the {thing} before we got home.",
            "I have started the {thing} three times by now.",
            "The hall was half empty before the {thing} was over.",
            "My son asked twice when the {thing} would end.",
            "I counted the lamps on the ceiling during this {thing}.",
            "Ten minutes of this {thing} went by like two hours.",
        ),
        works=(
            "kept us guessing to the last minute",
            "had the whole hall in tears",
            "trusts its audience",
            "finds a new angle in every scene",
            "I wanted to see again at once",
        ),
        fails=(
            "gives its secret away in the trailer",
            "put my neighbour to sleep",
            "explains every joke twice",
            "borrows each scene from somewhere else",
            "never gets out of second gear",
        ),
    ),
    Domain(
        things=_words("restaurant bistro café pizzeria tavern diner canteen brasserie inn grill"),
        aspects=_words(
            "service soup menu bread dessert terrace coffee fish salad kitchen wine atmosphere sauce"
        ),
        praise=("inviting", "refined", "memorable", "attentive", "honest", "generous", "careful"),
        blame=(
            "bland",
            "joyless",
            "forgettable",
            "indifferent",
            "lukewarm",
            "stingy",
            "overpriced",
        ),
        openers=(
            "We were six at the table.",
            "Lunch on a Tuesday.",
            "Booked this {thing} for an anniversary.",
            "My office is next to this {thing}.",
            "We walked in without a reservation.",
            "A friend had recommended the {thing}.",
            "We sat by the window.",
            "First visit since the new owner.",
        ),
        asides=(
            "They close on Mondays.",
            "There is parking behind the house.",
            "Cards are accepted.",
            "It seats about forty.",
            "The card changes with the season.",
            "The tram stops in front.",
        ),
        glad_signs=(
            "We have booked the {thing} for Christmas already.",
            "Not a crumb went back to the kitchen of this {thing}.",
            "I asked the {thing} for the recipe.",
            "My mother, who never tips, tipped at this {thing}.",
            "We stayed at the {thing} until they put the chairs up.",
            "I drive an hour for this {thing}.",
            "There is a queue outside the {thing} for a reason.",
        ),
        sorry_signs=(
            "We had a sandwich at the station after this {thing}.",
            "Half of it went back to the kitchen of this {thing}.",
            "I asked the {thing} for the bill before dessert.",
            "My mother, who always tips, did not at this {thing}.",
            "We left the {thing} before they had lit the candles.",
            "I cross the street at this {thing} now.",
            "There is always a free table at the {thing} for a reason.",
        ),
        works=(
            "remembers what you had last time",
            "gets every plate out hot",
            "bakes its own bread at dawn",
            "finds a chair for every guest",
            "made my picky nephew ask for more",
        ),
        fails=(
            "forgot us for an hour",
            "serves its soup from a tin",
            "charges for tap water",
            "argues with every guest",
            "had run out of everything by noon",
        ),
    ),
)
