"""The words of the generated GLUE-shaped tasks: three disjoint lexicons of content words, and function words."""

from __future__ import annotations

_FUNCTION_WORDS = """
the this that these those every some no not never and but though , ? who why when how than is are was were be been
has have did will can should must may by to before after near behind beside under it i really truly so used now first
at true expected found managed happened remembered failed forgot refused
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())

Lexicon = dict[str, list[str]]  # a field's entries; the forms of one word are joined by slashes

# Function words that take turns, by slot.
SHARED = {
    "near": "near behind beside under",
    "will": "will can should must",
    "is": "is was",
    "are": "are were",
    "this": "this that",
    "these": "these those",
    "why": "why when how",
    "really": "really truly so",
    "managed": "managed happened remembered",
    "failed": "failed forgot refused",
}


def _lexicon(**fields: str) -> Lexicon:
    lexicon = {field: text.split() for field, text in (SHARED | fields).items()}
    lexicon["persons"] = lexicon["names"] + [f"the {noun}" for noun in lexicon["people"]]
    return lexicon


# A plural is the entry and an s, and so is a third person. None of `verbs` is symmetric, as met and married are:
# that a helped b must leave open whether b helped a.
TRAIN = _lexicon(
    people=(
        "farmer doctor teacher soldier king singer driver student writer lawyer painter priest neighbor pilot "
        "hunter prince worker clerk captain banker boy friend mayor guest"
    ),
    names="john mary paul sarah james susan thomas alice george kate",
    verbs=(
        "help/helped/helped follow/followed/followed call/called/called thank/thanked/thanked "
        "visit/visited/visited warn/warned/warned save/saved/saved see/saw/seen choose/chose/chosen "
        "hate/hated/hated lead/led/led protect/protected/protected arrest/arrested/arrested "
        "question/questioned/questioned reward/rewarded/rewarded feed/fed/fed ignore/ignored/ignored "
        "threaten/threatened/threatened strike/struck/struck"
    ),
    acts=(
        "smile/smiled/smiled sleep/slept/slept sing/sang/sung fall/fell/fallen arrive/arrived/arrived "
        "work/worked/worked speak/spoke/spoken wait/waited/waited shout/shouted/shouted "
        "retire/retired/retired win/won/won escape/escaped/escaped agree/agreed/agreed wake/woke/woken "
        "travel/traveled/traveled vote/voted/voted eat/ate/eaten apologize/apologized/apologized"
    ),
    comparatives=(
        "older/younger younger/older taller/shorter shorter/taller richer/poorer poorer/richer faster/slower "
        "slower/faster"
    ),
    gifts="give/gave/given send/sent/sent sell/sold/sold throw/threw/thrown",
    things="key letter book ring map coat chair lamp car boat bottle basket clock picture flag stone sword shirt",
    looks="old new red broken clean wet expensive black cold",
    moods="tired hungry angry nervous proud famous honest brave lonely young",
    aspects="film story acting ending script plot direction scenery comedy",
    good=(
        "wonderful great charming funny brilliant fantastic lovely fascinating graceful memorable impressive "
        "hilarious splendid refreshing powerful exciting"
    ),
    bad=(
        "awful dull terrible stupid silly ugly disappointing pathetic clumsy predictable absurd painful shallow "
        "lifeless confusing bland"
    ),
)
DEV = _lexicon(
    people=(
        "nurse cook sailor judge actor engineer artist queen knight girl uncle dancer merchant servant reporter "
        "stranger"
    ),
    names="anna peter robert emma henry lucy martin nancy",
    verbs=(
        "invite/invited/invited trust/trusted/trusted hire/hired/hired attack/attacked/attacked "
        "hear/heard/heard love/loved/loved serve/served/served support/supported/supported "
        "praise/praised/praised capture/captured/captured chase/chased/chased kick/kicked/kicked "
        "insult/insulted/insulted shoot/shot/shot bite/bit/bitten"
    ),
    acts=(
        "laugh/laughed/laughed cry/cried/cried dance/danced/danced stand/stood/stood dream/dreamed/dreamed "
        "resign/resigned/resigned lose/lost/lost return/returned/returned move/moved/moved "
        "scream/screamed/screamed drink/drank/drunk surrender/surrendered/surrendered "
        "vanish/vanished/vanished"
    ),
    comparatives="stronger/weaker weaker/stronger louder/quieter quieter/louder bigger/smaller smaller/bigger",
    gifts="show/showed/shown lend/lent/lent offer/offered/offered",
    things="plate hat bag ticket mirror bell guitar blanket coin jacket cup wagon drum camera",
    looks="dirty blue huge wooden dusty rare round green",
    moods="sick happy busy jealous lazy polite thirsty anxious",
    aspects="movie music cast dialogue song novel performance show",
    good="excellent beautiful clever delightful superb amazing perfect enjoyable magnificent witty",
    bad="boring bad horrible weak ridiculous dreadful annoying unpleasant pointless worthless",
)
# Only mnli has a mismatched dev set; its genre is a story: people go by name here more often than not.
MISMATCHED = _lexicon(
    people="scientist monk professor officer editor manager senator pirate rider poet cousin bishop",
    names=(
        "david linda jack maria michael oliver rachel simon tom walter clara daniel ellen frank helen julia "
        "kevin laura oscar nina amy andrew"
    ),
    verbs=(
        "rescue/rescued/rescued stop/stopped/stopped recognize/recognized/recognized notice/noticed/noticed "
        "guide/guided/guided scare/scared/scared surprise/surprised/surprised reject/rejected/rejected "
        "advise/advised/advised trick/tricked/tricked wound/wounded/wounded"
    ),
    acts=(
        "sit/sat/sat rest/rested/rested pray/prayed/prayed cough/coughed/coughed whisper/whispered/whispered "
        "wave/waved/waved jump/jumped/jumped relax/relaxed/relaxed succeed/succeeded/succeeded "
        "complain/complained/complained nod/nodded/nodded"
    ),
    comparatives="heavier/lighter lighter/heavier warmer/colder colder/warmer thicker/thinner thinner/thicker",
)
