"""The rules of the grammar, one alternative a line (see :mod:`demo.grammar`)."""

from __future__ import annotations

__all__ = ["RULES"]


def _words(text: str) -> str:
    """Alternatives that are single words, written in one line."""
    return "\n".join(text.split())


RULES = {
    "sentence": """
        <time_talk>
        <date_talk>
        <alarm>
        <reminder>
        <weather>
        <cafe>
        <shop>
        <directions>
        <travel>
        <home>
        <home>
        <music>
        <message>
        <cooking>
        <health>
        <school>
        <work>
        <sport>
        <animals>
        <garden>
        <counting>
        <stories>
        <small_talk>
    """,
    "time_talk": """
        what time is it in <city>
        it is <clock> in <city> now
        the <event> starts at <clock>
        the <event> begins at <clock> on <weekday>
        we will meet at <clock> near the <place>
        the <place> opens at <clock> and closes at <clock>
        how long is it until <clock>
        the train from <city> is <minutes> late
        i will be there in <minutes>
        she waited <minutes> for the <vehicle>
        it takes about <minutes> to get there
    """,
    "date_talk": """
        what day is the <ordinal> of <month>
        today is <weekday> the <ordinal> of <month>
        my birthday is on the <ordinal> of <month>
        the <event> is on the <ordinal> of <month>
        we are going to <city> in <month>
        the <place> is closed on <weekday>
        <month> is always a <weather_word> month here
        he was born on the <ordinal> of <month>
        is the <event> this <weekday> or next <weekday>
        my <relative> comes home on <weekday> <daytime>
    """,
    "alarm": """
        wake me up at <clock>
        set an alarm for <clock> on <weekday>
        set a timer for <minutes>
        please set the alarm for <clock> tomorrow <daytime>
        cancel the alarm for <weekday> <daytime>
        how many minutes are left on the timer
        stop the timer and start it again
        move my alarm from <clock> to <clock>
        add <minutes> to the timer
    """,
    "reminder": """
        remind me to <task> at <clock>
        remind me to <task> on <weekday>
        please remind <person> to <task> tomorrow
        do not let me forget to <task>
        i have to <task> before <clock>
        did you remember to <task>
        put <task> on my list for <weekday>
        we need to <task> this <daytime>
        who is going to <task> on <weekday>
    """,
    "task": """
        call the <worker>
        call my <relative>
        water the plants
        feed the <pet>
        take out the rubbish
        pay the rent
        buy <food>
        clean the <room>
        send the letter
        book a table for <small>
        wash the car
        walk the dog
        pick up the children
        return the library books
        fix the <thing>
        answer the email
        lock the front door
        charge the phone
        visit my <relative>
    """,
    "weather": """
        will it <rain> in <city> on <weekday>
        it will be <weather_word> and <weather_word> in <city>
        the weather in <city> is <weather_word> today
        how cold is it in <city> this <daytime>
        it is <temperature> degrees in <city>
        the temperature will fall to <temperature> degrees
        expect <sky> in the <compass> this <daytime>
        there was a storm near <city> last night
        take an umbrella because it may <rain>
        the sun will shine until <clock>
        we had <sky> all through <month>
        tomorrow will be <weather_word> with some <sky>
    """,
    "cafe": """
        i would like a <size> <drink> please
        can i have <small> cups of <drink>
        a <size> <drink> with <extra> please
        <small> <drink> and a piece of <cake> please
        we would like a table for <small> at <clock>
        could we have the bill please
        do you have any <cake> left
        my friend will have the <soup> soup
        i would like the <soup> soup and some bread
        is there <extra> in this <drink>
        the <drink> costs <price>
        no <extra> for me thank you
        they serve breakfast until <clock>
        that is <price> for the <drink> and the <cake>
    """,
    "shop": """
        we need <food> and <food>
        add <food> to the shopping list
        how much are the <goods>
        the <goods> cost <price>
        i am looking for a <color> <clothing>
        do you have this <clothing> in <color>
        these <goods> are too expensive
        we bought <number> <goods> at the market
        the <clothing> is on sale for <price>
        she paid <price> for the <color> <clothing>
        can i return this <clothing> on <weekday>
        put <number> <goods> in the basket
        the shop on <street> street sells <goods>
    """,
    "directions": """
        turn <side> at the <place>
        turn <side> after the bridge and go straight on
        go past the <place> and turn <side>
        how do i get to the <place>
        the <place> is on the <side> side of <street> street
        where is the nearest <place>
        it is <number> kilometers to the <place>
        take the <ordinal> street on the <side>
        drive <compass> for <number> kilometers
        the <place> is behind the <place>
        walk along the river until you see the <place>
        is there a <place> near the <place>
        cross the bridge and follow the road <compass>
    """,
    "travel": """
        the <vehicle> to <city> leaves at <clock>
        when is the next <vehicle> to <city>
        the <vehicle> leaves from platform <small>
        <number> tickets to <city> please
        our flight to <city> was cancelled
        flight number <digits> is now boarding
        we flew from <city> to <city> in <month>
        i want to travel from <city> to <city>
        please keep your ticket until the end of the journey
        a room for <small> nights please
        your room is number <number> on the <ordinal> floor
        the <vehicle> from <city> arrives at <clock>
        they took the <vehicle> from <city> to <city>
        he lost his <luggage> on the <vehicle>
        do not forget your <luggage>
    """,
    "home": """
        turn on the <device> in the <room>
        turn off the <device> in the <room>
        switch the <device> off please
        switch on the <room> lights
        make the lights in the <room> <color>
        turn the heating up to <temperature> degrees
        set the <room> to <temperature> degrees
        dim the lights to <percent> percent
        open the <opening> in the <room>
        shut the <opening> in the <room>
        is the <opening> in the <room> open
        who left the <device> on in the <room>
        turn every light off at <clock>
        the <device> in the <room> is broken
        the keys are on the <furniture> in the <room>
        he painted the <furniture> <color>
    """,
    "music": """
        play some <genre> music
        play some <genre> music in the <room>
        turn the volume <updown>
        set the volume to <percent> percent
        play the next song
        skip this song and play the <ordinal> one
        who wrote this song
        stop the music in the <room>
        my <relative> plays the <instrument>
        she learned to play the <instrument> in <month>
        the band played <genre> music until <clock>
        play something quiet for <minutes>
        the <instrument> lesson is on <weekday>
    """,
    "message": """
        send a message to <person>
        tell <person> that i will be late
        tell my <relative> that dinner is ready
        call <person> on <weekday> <daytime>
        <person> called you at <clock>
        her number is <digits>
        my phone number ends with <digits>
        ask <person> when the <event> starts
        <person> and <person> are coming to the <event>
        did <person> answer your message
        say hello to <person> for me
        the password has <small> letters and <small> numbers
        what did <person> say about the <event>
    """,
    "cooking": """
        cut the <vegetable> into small pieces
        add <number> grams of <ingredient>
        mix the <ingredient> with the <ingredient>
        boil the <vegetable> for <minutes>
        bake the <cake> for <minutes>
        heat the oven to <hundreds> degrees
        the recipe needs <small> eggs and some <ingredient>
        stir the soup and add some <ingredient>
        put the <vegetable> in cold water
        dinner will be ready in <minutes>
        he cooks <vegetable> with <ingredient> every <weekday>
        there is too much <ingredient> in the soup
    """,
    "health": """
        i have a pain in my <body>
        my <body> hurts since <weekday>
        the <worker> can see you at <clock>
        take this medicine <small> times a day
        she broke her <body> in <month>
        drink a glass of water every <daytime>
        how are you feeling this <daytime>
        he slept for only <small> hours
        lift your <side> arm slowly
        i need to see the <worker> on <weekday>
    """,
    "school": """
        open your book at page <number>
        the <subject> lesson starts at <clock>
        the children are learning <subject>
        our <subject> teacher comes from <city>
        there are <number> students in the class
        write your name at the top of the page
        my favorite subject is <subject>
        the answer is <number>
        please repeat the <ordinal> question
        he forgot his <subject> book on the <vehicle>
        what is <number> plus <number>
        what is <number> minus <small>
    """,
    "work": """
        the meeting is at <clock> on <weekday>
        move the meeting to <clock>
        the office is on the <ordinal> floor
        <person> works as a <worker> in <city>
        please print <number> copies
        the new <worker> starts in <month>
        i finish work at <clock> on <weekday>
        she sent the report to <person>
        the company has <number> people in <city>
        can we talk about the <event> this <daytime>
        my <relative> is a <worker>
    """,
    "sport": """
        our team won <small> games in <month>
        we play <sport_name> every <weekday> <daytime>
        <person> scored <small> goals
        the <sport_name> game starts at <clock>
        who won the game between <city> and <city>
        she ran <number> kilometers this <daytime>
        he swims in the lake every <daytime>
        they lost by <small> points
        do you want to play <sport_name> with <person>
        the <sport_name> club meets near the <place>
    """,
    "animals": """
        the <pet> is sleeping on the <furniture>
        a <color> <animal> ran across the street
        we saw <number> <animal_plural> near the river
        my <relative> has a <color> <pet>
        the <animal> jumped over the fence
        there is a <animal> in the <room>
        the farm has <number> <animal_plural>
        the <pet> hid under the <furniture>
        how old is your <pet>
        <animal_plural> like to eat <vegetable>
    """,
    "garden": """
        the <color> flowers open in <month>
        we planted <number> trees behind the house
        there are <color> apples on the tree
        cut the grass before it starts to <rain>
        the <vegetable> grow well in <month>
        my <relative> works in the garden every <daytime>
        water the <color> flowers on <weekday>
        the old tree fell down in the storm
    """,
    "counting": """
        <digits> is the code for the door
        there are <number> chairs and <number> tables
        she counted <number> <color> cars
        the bridge is <hundreds> meters long
        more than <hundreds> people came to the <event>
        the bag weighs <number> kilograms
        only <number> of the <hundreds> tickets are left
        the number on the box is <digits>
        i have <number> <color> stamps and <small> coins
    """,
    "stories": """
        the old man lived alone by the sea
        once there was a <worker> who lived in <city>
        the <worker> found a <color> box under the <furniture>
        nobody knew where the <animal> came from
        <person> opened the letter and began to laugh
        they walked all night through the <color> forest
        it was a <weather_word> <daytime> in <month>
        the little <animal> was afraid of the <animal>
        <person> looked out of the window and saw <sky>
        a <worker> and a <worker> were talking about <city>
        the children sang a song about a <color> <animal>
    """,
    "small_talk": """
        good <daytime> <person> how are you
        thank you very much for the <cake>
        nice to see you again <person>
        what are you doing on <weekday> <daytime>
        i do not know where <person> is
        i think that <person> likes <genre> music
        <person> was in <city> last <weekday>
        have you ever been to <city>
        i am sorry that we are late
        see you on <weekday> at the <place>
        that was the best <event> of the year
        do you like <drink> or <drink>
        my <relative> said that the <event> was great
        which <thing> do you want
        where is my <thing>
        the <thing> is new but it does not work
        the <color> one is better than the <color> one
    """,
    "clock": """
        <hour> o'clock
        half past <hour>
        quarter past <hour>
        quarter to <hour>
        <hour> <tens_minute>
        <hour> <tens_minute> in the <daytime>
        <hour> in the <daytime>
        noon
    """,
    "hour": _words("one two three four five six seven eight nine ten eleven twelve"),
    "tens_minute": "ten\ntwenty\nthirty\nforty\nfifty\nfifteen\ntwenty five\nforty five",
    "daytime": _words("morning afternoon evening"),
    "minutes": "<number> minutes\n<small> hours\nhalf an hour\n<small> weeks\n<number> seconds",
    "weekday": _words("monday tuesday wednesday thursday friday saturday sunday"),
    "month": _words(
        "january february march april may june july august september october november december"
    ),
    "ordinal": """
        first
        second
        third
        fourth
        fifth
        sixth
        seventh
        eighth
        ninth
        tenth
        eleventh
        twelfth
        twentieth
        twenty first
        twenty third
        thirtieth
    """,
    "small": _words("two three four five six seven eight nine ten"),
    "digit": _words("zero one two three four five six seven eight nine"),
    "digits": "<digit> <digit> <digit>\n<digit> <digit> <digit> <digit>",
    "tens": _words("twenty thirty forty fifty sixty seventy eighty ninety"),
    "teen": _words("eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"),
    "number": "<small>\n<teen>\n<tens>\n<tens> <small_digit>",
    "small_digit": _words("one two three four five six seven eight nine"),
    "hundreds": "<small_digit> hundred\none hundred and <tens>\ntwo hundred and <tens>",
    "percent": "<tens>\n<tens> five\none hundred",
    "temperature": "<small>\n<teen>\ntwenty <small_digit>\nminus <small_digit>",
    "price": """
        <small> dollars
        <small> dollars and <tens> cents
        <small> pounds <tens>
        <tens> cents
        <number> euros
    """,
    "city": """
        london
        paris
        berlin
        madrid
        rome
        boston
        chicago
        new york
        tokyo
        sydney
        dublin
        vienna
        oslo
        moscow
        cairo
        toronto
        seattle
        dallas
        glasgow
        oxford
    """,
    "place": """
        station
        bank
        school
        library
        museum
        hospital
        hotel
        church
        park
        market
        post office
        supermarket
        bakery
        cinema
        theater
        castle
        harbor
        airport
        pharmacy
        swimming pool
    """,
    "street": _words("king queen bridge church green river station market garden victoria"),
    "side": _words("left right"),
    "compass": _words("north south east west"),
    "vehicle": _words("bus train ferry plane taxi boat"),
    "luggage": _words("ticket suitcase passport jacket camera wallet"),
    "event": """
        concert
        film
        party
        meeting
        wedding
        match
        show
        festival
        dinner
        lecture
    """,
    "person": _words("anna peter maria david sarah thomas emma martin laura daniel sophie michael"),
    "relative": _words("mother father sister brother uncle aunt cousin grandmother daughter"),
    "worker": _words(
        "doctor dentist teacher nurse farmer driver painter lawyer baker plumber manager singer"
    ),
    "rain": _words("rain snow"),
    "weather_word": _words("sunny rainy cloudy windy cold warm hot dry foggy stormy"),
    "sky": "heavy rain\nlight rain\nsnow\nsunshine\nthick fog\nstrong winds\ndark clouds\nthunder",
    "size": _words("small large"),
    "drink": """
        coffee
        black coffee
        green tea
        tea
        hot chocolate
        orange juice
        apple juice
        lemonade
        milk
        mineral water
    """,
    "extra": "milk\nsugar\nlemon\nhoney\nice\ncream\ncinnamon",
    "cake": "chocolate cake\napple pie\ncheese cake\nbanana bread\ncarrot cake\nlemon cake",
    "soup": _words("tomato potato onion chicken mushroom fish"),
    "food": """
        bread
        butter
        milk
        eggs
        cheese
        rice
        pasta
        <vegetable>
        <goods>
        a bottle of oil
        a bag of sugar
        <small> bottles of water
    """,
    "goods": _words(
        "apples bananas oranges lemons tomatoes cherries shoes socks gloves candles batteries cups"
    ),
    "vegetable": _words("potatoes carrots onions beans mushrooms spinach tomatoes peppers"),
    "ingredient": _words("butter sugar salt pepper garlic honey cream rice cheese oil"),
    "clothing": _words("shirt dress jacket sweater hat scarf skirt coat"),
    "color": _words("red blue green yellow white black brown purple orange pink gray silver"),
    "device": """
        light
        lamp
        radio
        television
        heating
        fan
        computer
        oven
        washing machine
        speaker
    """,
    "room": """
        kitchen
        bathroom
        bedroom
        living room
        garage
        hall
        office
        cellar
        dining room
    """,
    "opening": _words("window door gate"),
    "furniture": _words("table sofa chair shelf desk bed cupboard carpet"),
    "thing": _words("bicycle lamp clock computer printer fridge ladder camera umbrella"),
    "genre": _words("jazz classical folk pop rock piano dance country"),
    "updown": _words("up down"),
    "instrument": _words("piano guitar violin trumpet flute drums"),
    "body": _words("back head neck shoulder knee foot stomach finger hand ankle"),
    "subject": _words("history music math science english geography french chemistry"),
    "sport_name": _words("football tennis chess hockey basketball golf"),
    "pet": _words("dog cat rabbit parrot kitten puppy"),
    "animal": _words("fox horse squirrel mouse bear wolf goat duck hedgehog monkey"),
    "animal_plural": _words("horses cows goats ducks rabbits chickens squirrels swans"),
}
