"""Text that tries tokenizers: many languages, code, and what breaks careless ones. Always the same."""

import os
import random
import unicodedata
from pathlib import Path

SENTENCES = """\
All human beings are born free and equal in dignity and rights; they're endowed with reason.
Alle Menschen sind frei und gleich an Würde und Rechten geboren. Straße, Übergrößenträger, ẞ.
Tous les êtres humains naissent libres et égaux en dignité et en droits ; l'œuvre, ça, où, naïve.
Todos los seres humanos nacen libres e iguales en dignidad y derechos. ¿Qué? ¡El niño señaló!
Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw. Łódź, żółć.
Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền lợi.
Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar. İstanbul, ılık, IĞDIR.
Все люди рождаются свободными и равными в своём достоинстве и правах. Ёлка, подъезд.
Усі люди народжуються вільними і рівними у своїй гідності та правах. Їжак, ґанок.
Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα. ΐ ᾳ ῷ.
כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם. שָׁלוֹם עֲלֵיכֶם
يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق. مُحَمَّدٌ ١٢٣٤٥
تمام افراد بشر آزاد به دنیا می‌آیند و از لحاظ حیثیت و حقوق با هم برابرند. ۱۲۳
सभी मनुष्य जन्म से स्वतन्त्र तथा मर्यादा और अधिकारों में समान होते हैं। १२३ क़िला
সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা এবং অধিকার নিয়ে জন্মগ্রহণ করে। ১২৩ ড়
மனிதப் பிறிவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்; ௧௨௩ கொ
มนุษย์ทั้งปวงเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ ๑๒๓ น้ำ
ຄົນເຮົາເກີດມາມີອິດສະຫຼະພາບ ແລະສະເໝີໜ້າກັນ
មនុស្សទាំងអស់កើតមកមានសេរីភាព និងសមភាព ១២៣
လူတိုင်းသည် တူညီလွတ်လပ်သော ဂုဏ်သိက္ခာဖြင့် ၁၂၃
ᠬᠦᠮᠦᠨ ᠪᠦᠷ ᠲᠥᠷᠥᠵᠦ ᠮᠡᠨᠳᠡᠯᠡᠬᠦ ᠡᠷᠬᠡ ᠴᠢᠯᠥᠭᠡ᠎ᠲᠡᠢ ᠪᠠᠶᠢᠳᠠᠭ᠃
ყველა ადამიანი იბადება თავისუფალი და თანასწორი თავისი ღირსებითა და უფლებებით.
Բոլոր մարդիկ ծնվում են ազատ ու հավասար իրենց արժանապատվությամբ ու իրավունքներով։
የሰው ልጅ ሁሉ ሲወለድ ነጻና በክብርና በመብትም እኩልነት ያለው ነው። ፩፪፫
人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。
人人生而自由,在尊嚴和權利上一律平等。㈠㊀①Ⅳ⑳ 一二三 龍
すべての人間は、生まれながらにして自由であり、尊厳と権利とについて平等である。ガギグ ｶﾞｷﾞ パピ
모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. 각간갇 한국어
""".splitlines()

EMOJI = ["😀", "👍🏽", "👩‍👩‍👧‍👦", "🇩🇪🇯🇵", "1️⃣", "❤️", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "🧑🏿‍🚀", "☃", "⌚︎", "🫠", "™", "©", "𝔘𝔫𝔦", "𝟙𝟚"]
WHITE_SPACE = " \t\n\r\v\f\x85\xa0\u1680\u2000\u2009\u2028\u2029\u202f\u205f\u3000"
ALMOST_SPACE = "\u180e\u200b\u200c\u200d\u2060\ufeff\x1c\x1f\x00\u00ad"
CONTRACTIONS = ["'s", "'T", "'re", "'VE", "'m", "'ll", "'Ll", "'d", "'\u017f", "\u2019s", "'", "''s", "'x"]
LOOK_ALIKES = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|eot_id|>",
    "<|start_header_id|>", "<|end_header_id|>", "<s>", "</s>", "<unk>", "<think>", "</think>",
    "<tool_call>", "[INST]", "[/INST]", "<0x41>", "<0x0A>", "<0xE4>", "\u2581", "\u2581\u2581", "Ġ", "Ċ",
    "<|", "|>", "<|im_", "end|>", "<|IM_START|>", "< |im_end|>", "<|im_end| >", "<<s>>", "</s",
    "<|im_start|><|im_start|>", "<|im_sta<|im_start|>rt|>", "<|reserved_special_token_0|>"]


def assigned_code_points():
    """As of Python's Unicode version, which the libraries that are compared are not older than."""
    return [chr(c) for c in range(0x110000)
            if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]


def machine_text():
    """English and source code, cut into documents of 20 000 characters."""
    licences = sorted(Path("/usr/share/common-licenses").glob("*"))
    sources = sorted(Path(os.__file__).parent.glob("*.py"))[:40]
    text = "".join(path.read_text(errors="replace") for path in licences + sources)
    return [text[i:i + 20_000] for i in range(0, min(len(text), 1_200_000), 20_000)]


def sentences(rng, count):
    """Whole sentences, and their words and letters mixed across languages."""
    words = " ".join(SENTENCES).split()
    letters = "".join(SENTENCES)
    for _ in range(count):
        yield "\n".join(rng.choices(SENTENCES, k=4))
        yield " ".join(rng.choices(words, k=40))
        yield "".join(rng.choices(letters, k=60))


def each_code_point(rng):
    """Every assigned code point once, in order, among letters, digits and spaces."""
    points = assigned_code_points()
    for i in range(0, len(points), 500):
        yield "".join(c + rng.choice(["", "", " ", "a", "1", " a", "\n"]) for c in points[i:i + 500])


def random_code_points(rng, count):
    points = assigned_code_points()
    marks = [c for c in points if unicodedata.combining(c)]
    for _ in range(count):
        yield "".join(rng.choices(points, k=80))
        yield "".join(rng.choice("aeiouAnκ가ក\n ") + "".join(rng.choices(marks, k=rng.randrange(6)))
                      for _ in range(40))


def mixtures(rng, count):
    """What regular expressions of tokenizers tell apart, in random order."""
    pieces = (EMOJI + CONTRACTIONS + LOOK_ALIKES + list(WHITE_SPACE) + list(ALMOST_SPACE) +
              ["a", "Zebra", "été", "e\u0301", "漢字", "123", "4", "٣", "½", "Ⅷ", "_", "...", "!?", "\r\n",
               "\n\n", "  ", "   ", "://", "=>", "+", "$", "\ufffd", "ſ", "İ", "ﬁ", "Å", "\u1100\u1161\u11a8"])
    for _ in range(count):
        yield "".join(rng.choices(pieces, k=rng.randrange(1, 60)))
        yield "".join(c * rng.randrange(1, 9) for c in rng.choices(WHITE_SPACE + "ab\n\n  ", k=30))
        yield rng.randbytes(rng.randrange(1, 120)).decode(errors="replace")


def extremes(length):
    """Runs and words longer than anyone writes."""
    rng = random.Random(3)
    for unit in ["a", "A", " ", "\n", "\t ", "1", "!", "ab", "漢", "\u0301", "é", "e\u0301", "👍", "\r\n", "_a",
                 "aB1 ", "\u3000", "<|im_end|>", "<", "\u2581", "가", " \n"]:
        yield unit * (length // len(unit))
        yield f"x{unit * (length // 20)} y"
    marks = [c for c in assigned_code_points() if unicodedata.combining(c)]
    yield "e" + "".join(rng.choices(marks, k=length))
    yield "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=length))
    yield "".join(rng.choices("ab", k=length))
    yield "".join(rng.choices("0123456789", k=length))
    yield "".join(rng.choices("的一是不了人我在有他这为之大来以个中上们", k=length))


def hard_documents():
    """The short and the strange: everything but plain prose."""
    rng = random.Random(1)
    yield from ["", " ", "a", "\n", "\ufeff", "\x00"]
    yield from sentences(rng, 20)
    yield from mixtures(rng, 200)
    yield from random_code_points(rng, 30)
    yield from extremes(2_000)


def training_documents():
    """For vocabularies of a few thousand tokens."""
    return machine_text()[:15] + list(sentences(random.Random(4), 150))


def all_documents():
    rng = random.Random(2)
    documents = [*hard_documents(), *machine_text(), *sentences(rng, 150), *each_code_point(rng),
                 *mixtures(rng, 600), *random_code_points(rng, 300), *extremes(20_000)]
    assert sum(len(document.encode()) for document in documents) >= 2_000_000
    return documents
