"""Sentences of the mini corpus: a voice-assistant grammar, and open text made of frequent words.

Both are templates whose ``{slots}`` are filled from word lists. A sentence belongs to the train, dev or test split by a
checksum of its words, so no sentence of one split can ever stand in another, whatever the seeds.
"""

from __future__ import annotations

import re
import zlib

import numpy as np

SPLITS = ("train", "dev", "test")
# Of 20 checksums, how many go to each split.
_SHARES = {"train": 15, "dev": 2, "test": 3}
# Fillers of a slot that the smallest vocabulary keeps: all hours, weekdays and digits stay.
_ALWAYS = 12
_SLOT = re.compile(r"{(\w+)}")

# "name:" and its fillers; "assistant" and "open" are the sentences themselves. A filler that stands twice is drawn
# twice as often. A smaller vocabulary keeps the first ones of each list, so the patterns that stand first are those with
# the most different sentences: none of them is used up while the others still give new ones.
_GRAMMAR = """
assistant:
  set an alarm {day} at {time} / wake me up {day} at {time} / cancel the {time} alarm {day}
  set a timer for {count} minutes for the {food} in the {room} / turn {onoff} the {room} lights at {time}
  add {count} minutes to the {food} timer in the {room} / switch {onoff} the {device} in the {room} {day}
  turn {onoff} the {room} {device} at {time} / dim the {room} lights to {number} percent {day}
  set the {room} to {number} degrees {day} / turn {onoff} everything in the {room} {day}
  add {food} and {food} to the {item} list / set an alarm for {time} / wake me up at {time}
  set a {count} minute timer for the {food} / how much time is left on the {food} timer / stop the {food} timer
  turn the {device} {onoff} / is the {room} {device} on / set the {room} lights to {colour}
  make the {room} lights {colour} and {level} / lock the {place} door / open the {room} window / play {music}
  play some {music} in the {room} / play {music} by {artist}
  play the next song by {artist} / turn the volume {updown} to {number} / skip this song and play {music}
  what song by {artist} is this / add {artist} to my {music} list / shuffle {music} in the {room}
  stop the music in {count} minutes / what is the weather in {city} / will it {weather} in {city} {day}
  how {hotcold} will it be in {city} {day} / what is the temperature in {city} at {time}
  do i need {carry} in {city} {day} / is there {storm} near {city} / call {person}
  call {person} on {hisher} {phone} / send a message to {person} / text {person} that i am {state}
  tell {person} i will be there at {time} / did {person} call me {day} / read the last message from {person}
  send {person} the {item} list / ask {person} to bring the {item} / what is the phone number of {person}
  dial {digit} {digit} {digit} {digit} / what is {number} plus {number} / what is {number} minus {number}
  what is {digit} times {number} / convert {number} {unit} to {unit} / my code is {digit} {digit} {digit} {digit}
  remind me to {task} at {time} / remind me to {task} {day} / remind {person} to {task} {day}
  add {food} to the {item} list / add {number} {food} to my order / do we have any {food} left
  book a table for {count} at {time} / how far is it to the {place} / take me to the {place} in {city}
  when does the {place} open {day} / find {food} near the {place} / how long does it take to cook {food}
  what is on my calendar {day} / move my meeting with {person} to {time} / cancel lunch with {person} {day}
  meet {person} at the {place} at {time} / what is the price of {food} / show me {kind} news from {city}
open:
  the {adjective} {noun} {went} {where} / a {adjective} {noun} {went} {where} {when}
  {who} {did} the {noun} {when} / {who} {did} a {adjective} {noun} {where}
  the {noun} and the {noun} {went} {where} / {who} {went} {where} {how} / {when} the {noun} {went} {where}
  {when} {who} {did} the {adjective} {noun} / there is a {noun} {where}
  {who} {think} that the {noun} was {adjective} / it was a {adjective} {noun} but {who} {did} it
  {who} {did} the {noun} because it was {adjective} / every {noun} {where} was {adjective} {when}
  if the {noun} is {adjective} we can {do} it {when} / they want to {do} the {adjective} {noun}
  she could not {do} the {noun} {where} / he will {do} your {noun} {how} / please {do} this {noun} {how}
  {who} {think} they should {do} the {noun} / where did {who} {do} the {noun} / why is the {noun} so {adjective}
  my {noun} is {adjective} and your {noun} is {adjective} / {number} {adjective} people {went} {where}
  we have {number} reasons to {do} the {noun} / none of us {did} the {noun} {how} / the {noun} was {where} {when}
  {who} {went} {how} to {do} the {noun} / only the {adjective} {noun} could {do} it {how}
digit:
  one / two / three / four / five / six / seven / eight / nine / zero
count:
  two / three / four / five / six / eight / ten / twelve / fifteen / twenty / thirty / forty
hour:
  one / two / three / four / five / six / seven / eight / nine / ten / eleven / twelve
minute:
  thirty / fifteen / forty five / ten / twenty / forty / fifty / oh five / twenty five
time:
  {hour} {minute} / {hour} {minute} / half past {hour} / quarter to {hour} / {hour} in the morning
  {hour} in the evening / {hour} o'clock / quarter past {hour} / noon / midnight
day:
  today / tomorrow / tonight / on {weekday} / on {weekday} / next {weekday} / this {weekday} / next week
  this morning / this afternoon / on {month} {ordinal}
weekday:
  monday / tuesday / wednesday / thursday / friday / saturday / sunday
month:
  january / march / april / june / july / august / october / december
ordinal:
  first / second / third / fourth / fifth / tenth / twelfth / twentieth / thirtieth
onoff:
  on / off
updown:
  up / down
hisher:
  his / her
room:
  kitchen / bedroom / bathroom / garage / hallway / office / living room / dining room / garden / basement
  nursery / attic
device:
  fan / heater / television / radio / oven / coffee machine / lamp / camera / speaker / washer / air conditioner
  kettle / dryer / printer
colour:
  red / blue / green / yellow / white / purple / orange / pink
level:
  bright / dark / warm / soft / cool / low
music:
  jazz / rock / classical music / country / piano music / the blues / my favourite songs / hip hop / dance music
  folk / opera / holiday songs / reggae / summer hits
artist:
  the rolling waves / silver moon / johnny river / the golden birds / maria stone / black horses / anna winter
  the paper kings / simon fields / lucky seven
city:
  london / paris / boston / chicago / tokyo / madrid / dublin / denver / berlin / seattle / toronto / sydney
  houston / rome / cairo / oslo / vienna / miami / dallas / lisbon
weather:
  rain / snow / clear up / freeze / be sunny / be windy / be cloudy / be foggy / warm up / cool down
hotcold:
  hot / cold / warm / wet / humid / windy
carry:
  an umbrella / a coat / a jacket / boots / gloves / a scarf / sunglasses / a hat
storm:
  a storm / fog / ice / a flood / thunder / lightning / strong wind / heavy snow
person:
  mom / dad / peter / susan / michael / laura / doctor brown / grandma / robert / emily / uncle george / my sister
  my brother / daniel / sophie / oliver / the office / david / kate / mister jones / hannah / thomas
phone:
  cell phone / work phone / home phone / mobile / office line
state:
  late / on my way / at home / almost there / at work / stuck in traffic / running late / ready / busy
item:
  shopping / grocery / party / guest / travel / wish / gift / reading
task:
  feed the cat / water the plants / pay the rent / buy {food} / call {person} / walk the dog / take my medicine
  clean the {room} / wash the car / pick up {person} / check the mail / charge the {device} / book the flight
  return the books / take out the trash
food:
  bread / milk / eggs / butter / cheese / apples / bananas / rice / chicken / pasta / tomatoes / onions / pizza
  soup / fish / potatoes / sugar / tea / coffee / carrots / lemons / cookies / salad / beans
place:
  airport / station / hospital / library / bank / museum / front / back / school / post office / market / theater
  pharmacy / gym / hotel / park / side / beach
unit:
  miles / meters / pounds / dollars / inches / gallons / ounces / feet / cups / euros
kind:
  sports / business / science / local / health / travel / breaking
adjective:
  old / new / young / small / large / long / short / great / little / different / important / early / public
  strong / certain / free / poor / happy / simple / single / quiet / heavy / empty / clean / broken / strange
  deep / famous / gentle / golden / honest / hungry / narrow / perfect / quick / rich / sharp / silent / sweet
  tall / terrible / tiny / ugly / wide / wild / wonderful / wooden / wrong / beautiful / careful / dangerous
  expensive
noun:
  man / woman / child / world / house / country / family / student / teacher / problem / hand / company / question
  government / story / job / word / business / side / friend / father / mother / hour / game / line / city
  community / name / president / team / idea / body / parent / face / level / door / person / history / party
  reason / moment / girl / boy / force / education / river / mountain / table / picture / letter / horse / bird
  ship / island / farmer / soldier / king / queen / engine / machine / doctor / lawyer / village / captain
  bridge / castle / forest / field / flower / animal / paper / window / mirror / clock / basket / bottle / candle
  carpet / chair / coin / drawer / feather / hammer / ladder / market / needle / pencil / pocket / ribbon / saddle
  shoulder / stone / string / ticket / tower / train / valley / wagon / wheel / winter / plan / report / system
  program / number / neighbour / stranger
who:
  he / she / they / we / i / you / everyone / nobody / the {noun} / the {noun} / my {noun} / his {noun}
  her father / our neighbours / some people / most of them / the other one / somebody / those men / these women
went:
  walked / went / came / stood / waited / sat / ran / fell / lived / stayed / travelled / moved / arrived / slept
  worked / turned / climbed / jumped / returned / appeared / disappeared / looked / sang / laughed / played
did:
  saw / found / took / made / bought / sold / lost / broke / carried / remembered / forgot / wanted / liked
  watched / followed / painted / opened / closed / left / kept / built / pulled / pushed / held / brought / heard
  dropped / cleaned / showed / loved / helped / needed / changed / chose / drew / hid / caught / threw
  understood
do:
  see / find / take / make / buy / sell / lose / break / carry / remember / forget / watch / follow / paint / open
  close / leave / keep / build / pull / push / hold / bring / hear / drop / clean / show / help / change / choose
  draw / hide / catch / throw / understand / believe / explain / describe / protect / measure
think:
  think / know / said / believe / hope / thought / knew / heard / felt / guess / agreed / decided
where:
  in the {noun} / near the {noun} / behind the {noun} / under the {noun} / across the {noun} / over the {noun}
  beside the {adjective} {noun} / through the {noun} / around the {noun} / between the trees / at home / outside
  far away / upstairs / along the road / by the sea / into the {adjective} {noun} / next door
when:
  yesterday / last night / last year / again / after dinner / before school / once more / in the spring
  during the war / for a long time / every evening / at last / in the end / two days ago / since then / all day
how:
  quickly / slowly / alone / together / carefully / suddenly / without a word / quietly / very well
  with great care / as usual / at once / too late / by hand / by mistake / for free / in silence / on purpose
"""


def _parse(text: str) -> dict[str, tuple[str, ...]]:
    slots = {}
    for block in re.split(r"\n(?=\w)", text.strip()):
        name, fillers = block.split(":\n")
        slots[name] = tuple(" ".join(filler.split()) for filler in re.split(r" / |\n", fillers))
    return slots


def _numbers() -> tuple[str, ...]:
    """One to ninety-nine in words."""
    ones = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    small = [
        "ten",
        "eleven",
        "twelve",
        *(f"{stem}teen" for stem in ("thir", "four", "fif", "six", "seven", "eigh", "nine")),
    ]
    tens = [f"{stem}ty" for stem in ("twen", "thir", "for", "fif", "six", "seven", "eigh", "nine")]
    return (*ones, *small, *(" ".join([ten, *one]) for ten in tens for one in [[], *([o] for o in ones)]))


SLOTS = {**_parse(_GRAMMAR), "number": _numbers()}


def make_sentence(rng: np.random.Generator, open_share: float, vocabulary_share: float) -> str:
    """Draw one lower-case sentence: open text with probability ``open_share``, else an assistant's command."""

    def draw(name: str) -> str:
        fillers = SLOTS[name]
        kept = max(min(_ALWAYS, len(fillers)), round(vocabulary_share * len(fillers)))
        return fillers[rng.integers(kept)]

    sentence = draw("open" if rng.random() < open_share else "assistant")
    while True:
        slot = _SLOT.search(sentence)
        if slot is None:
            return sentence
        sentence = sentence[: slot.start()] + draw(slot.group(1)) + sentence[slot.end() :]


def split_of(sentence: str) -> str:
    """The one split to which a sentence belongs, by a checksum of its words."""
    bucket = zlib.crc32(sentence.encode("utf-8")) % sum(_SHARES.values())
    for split in SPLITS[:-1]:
        if bucket < _SHARES[split]:
            return split
        bucket -= _SHARES[split]
    return SPLITS[-1]


def make_sentences(
    split: str, count: int, rng: np.random.Generator, open_share: float, vocabulary_share: float
) -> list[str]:
    """Draw up to ``count`` different sentences of ``split``; fewer when the grammar seems not to have that many."""
    found: dict[str, None] = {}
    for _ in range(100 * count):
        if len(found) == count:
            break
        sentence = make_sentence(rng, open_share, vocabulary_share)
        if split_of(sentence) == split:
            found[sentence] = None
    return list(found)
